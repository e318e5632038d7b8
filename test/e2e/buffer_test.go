package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// exported is a line of `buffer export`.
type exported struct {
	Seq      string `json:"seq"` // EPOCH-LANE-N, as in tg-seq
	ID       string `json:"id"`
	Topic    string `json:"topic"`
	Received string `json:"received"`
	QoS      int    `json:"qos"`
	Payload  string `json:"payload"`
	Encoding string `json:"encoding"`
}

func (e exported) bytes(t *testing.T) []byte {
	t.Helper()
	switch e.Encoding {
	case "utf8":
		return []byte(e.Payload)
	case "base64":
		b, err := base64.StdEncoding.DecodeString(e.Payload)
		if err != nil {
			t.Fatalf("payload of %s: %v", e.ID, err)
		}
		return b
	}
	t.Fatalf("encoding %q", e.Encoding)
	return nil
}

func (g *gateway) export() []exported {
	g.t.Helper()
	r := g.run("buffer", "export")
	if r.code != 0 {
		g.t.Fatalf("buffer export: %v", r)
	}
	var list []exported
	for d := json.NewDecoder(strings.NewReader(r.out)); d.More(); {
		var e exported
		if err := d.Decode(&e); err != nil {
			g.t.Fatalf("buffer export: %v\n%s", err, r.out)
		}
		list = append(list, e)
	}
	return list
}

// listed is an entry of `buffer ls --json`.
type listed struct {
	Uplink  string `json:"uplink"`
	Lane    string `json:"lane"`
	Records int    `json:"records"`
	Bytes   int    `json:"bytes"`
	First   uint64 `json:"first_seq"`
	Last    uint64 `json:"last_seq"`
	Oldest  string `json:"oldest"`
	Newest  string `json:"newest"`
	Segment int    `json:"segments"`
	Damaged int    `json:"damaged"`
}

func (g *gateway) list() []listed {
	g.t.Helper()
	r := g.run("buffer", "ls", "--json")
	var list []listed
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || r.code != 0 {
		g.t.Fatalf("buffer ls --json: %v: %v", err, r)
	}
	return list
}

// TestBufferCommands: ls, verify and export show the same beside a running gateway and on a stopped one, and payloads come
// back byte for byte.
func TestBufferCommands(t *testing.T) {
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n  topic = \"up/{topic}\"\n[route.alarm]\n  from = [\"alarm\"]\n  lane = \"urgent\"\n",
		uplinkTo("cloud", "mqtt://127.0.0.1:9", "5"))
	g.start()
	payloads := [][]byte{[]byte("21.5"), []byte("grün ✓"), {0, 1, 2, 0xff, 0xfe}, {}, []byte(strings.Repeat("x", 60000)), []byte("\"\\\n\x01")}
	w, err := dial(g.addr(devices), "5", login{client: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	begin := time.Now()
	for i, p := range payloads {
		if got := ackOf(t, w, "plant/t", 1, uint16(i+1), p); got != 0 {
			t.Fatalf("message %d: reason %#x", i, got)
		}
	}
	if got := ackOf(t, w, "alarm", 2, 99, []byte("fire")); got != 0 {
		t.Fatalf("alarm: reason %#x", got)
	}

	check := func(when string) {
		t.Helper()
		records := map[string]listed{}
		for _, l := range g.list() {
			records[l.Uplink+"/"+l.Lane] = l
		}
		normal, urgent := records["cloud/normal"], records["cloud/urgent"]
		if normal.Records != len(payloads) || urgent.Records != 1 || normal.Last-normal.First+1 != uint64(len(payloads)) ||
			normal.Bytes < 60000 || normal.Damaged != 0 || normal.Segment < 1 {
			t.Errorf("%s: buffer ls --json: %+v", when, records)
		}
		if at, err := time.Parse(time.RFC3339Nano, normal.Oldest); err != nil || at.Before(begin.Add(-time.Minute)) || at.After(time.Now()) {
			t.Errorf("%s: oldest %q: %v", when, normal.Oldest, err)
		}
		if r := g.run("buffer", "ls"); r.code != 0 || !strings.Contains(r.out, "cloud") {
			t.Errorf("%s: buffer ls: %v", when, r)
		}
		if r := g.run("buffer", "verify"); r.code != 0 {
			t.Errorf("%s: buffer verify: %v", when, r)
		}
		var got [][]byte
		ids := map[string]bool{}
		for _, e := range g.export() {
			ids[e.ID] = true
			if strings.Count(e.Seq, "-") != 2 {
				t.Errorf("%s: sequence %q, want EPOCH-LANE-N", when, e.Seq)
			}
			if e.Topic == "alarm" {
				if string(e.bytes(t)) != "fire" {
					t.Errorf("%s: alarm %q", when, e.Payload)
				}
				continue
			}
			if e.Topic != "up/plant/t" || e.QoS != 1 || e.ID == "" || e.Received == "" {
				t.Errorf("%s: export: %+v", when, e)
			}
			got = append(got, e.bytes(t))
		}
		if len(ids) != len(payloads)+1 {
			t.Errorf("%s: export has %d different identities, want %d", when, len(ids), len(payloads)+1)
		}
		for i, p := range payloads {
			if i >= len(got) || string(got[i]) != string(p) {
				t.Errorf("%s: payload %d did not come back", when, i)
			}
		}
	}
	check("running")
	g.stop()
	check("stopped")
	g.start()
	check("running again")
	g.kill()
	check("killed")
}

// TestPurge: what is given up is counted, and does not come back.
func TestPurge(t *testing.T) {
	const n = 100
	c := newCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, n)
	if r := g.run("buffer", "purge"); r.code != 2 || g.uplink("cloud").Records != n {
		t.Errorf("buffer purge without --yes: %v\nwant exit code 2 and nothing done", r)
	}
	if r := g.run("buffer", "purge", "--yes"); r.code != 0 {
		t.Fatalf("buffer purge --yes: %v", r)
	}
	if u := g.uplink("cloud"); u.Records != 0 {
		t.Errorf("after it the status is %+v", u)
	}
	if places := g.metrics().places("cloud"); places["purged"] != n || len(places) != 1 {
		t.Errorf("ledger: %s, want purged=%d alone", ledgerText(places), n)
	}
	g.kill()
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, n+1, n)
	c.start()
	far := consume(t, c.addr(), "application", "plant/#")
	g.requireDrained("cloud", 60*time.Second)
	g.stop()
	if v := far.verdict("plant/dev", n); len(v.lost) != n {
		t.Errorf("%d of %d purged records came back", n-len(v.lost), n)
	}
	if r := g.run("buffer", "purge", "--yes"); r.code != 0 {
		t.Errorf("buffer purge --yes on a stopped gateway: %v", r)
	}
}

// TestDamage: a flipped byte in a stored segment is found by verify, and costs at most the frame that it is in: the gateway
// starts all the same, delivers the rest and counts what is damaged.
func TestDamage(t *testing.T) {
	const n = 400
	c := newCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	// One in flight: about one frame for each message.
	d := &device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 1, pad: 100, addr: g.here}
	d.start(t).finish(t, n, 60*time.Second)
	g.stop()

	// Byte 0x78 is the filling of the payloads: inside a record, in the middle of the stream.
	path, at := findPayload(t, g.data(), fmt.Sprintf("dev %d ", n/2+rand.IntN(50)))
	data := []byte(readFile(t, path))
	data[at+40] ^= 0x10
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := g.run("buffer", "verify"); r.code != 1 || r.err+r.out == "" {
		t.Errorf("buffer verify after a flipped byte: %v\nwant exit code 1 and where", r)
	}
	c.start()
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	g.requireDrained("cloud", 60*time.Second)
	waitFor(t, soon, "the rest to arrive", func() bool { return far.distinct("plant/dev") >= n-5 },
		func() string { return far.verdict("plant/dev", n).String() })
	v := far.verdict("plant/dev", n)
	if len(v.lost) < 1 || len(v.lost) > 5 || len(v.disorder) > 0 {
		t.Errorf("%v; want the records of one frame lost, at most", v)
	}
	places := g.metrics().places("cloud")
	t.Logf("%v; ledger: %s", v, ledgerText(places))
	if r := g.run("buffer", "ls", "--json"); !strings.Contains(r.out, `"damaged"`) {
		t.Errorf("buffer ls --json: %v", r)
	}
	// It goes on working.
	e := &device{name: "later", topic: "plant/later", version: "3.1.1", qos: 1, window: 10, addr: g.here}
	far.requireAll(t, "plant/later", e.start(t).finish(t, 50, soon), soon)
	g.stop()
}

// findPayload looks for a text in the files of a folder.
func findPayload(t *testing.T, dir, text string) (path string, at int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if i := strings.Index(string(data), text); i >= 0 {
			path, at = p, i
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if path == "" {
		t.Fatalf("no file below %s holds %q", dir, text)
	}
	return path, at
}
