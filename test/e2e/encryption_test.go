package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	keyOne = "0101010101010101010101010101010101010101010101010101010101010101"
	keyTwo = "0202020202020202020202020202020202020202020202020202020202020202"
)

// TestEncryptedBuffer: nothing of a message can be found on disk; a wrong key stops the gateway with a clear error and changes nothing; the
// key can be replaced while the cloud is away; after kills and all that the cloud gets every message once acknowledged.
func TestEncryptedBuffer(t *testing.T) {
	c := newCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5",
		"[uplink.cloud.buffer]\n  encryption_key = { file = \"buffer.key\" }"))
	g.write("buffer.key", keyOne+"\n")
	if err := os.Chmod(filepath.Join(g.dir, "buffer.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.start()
	sent := 0
	send := func(n int) {
		t.Helper()
		w, err := dial(g.addr(devices), "5", login{client: "dev"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		for range n {
			sent++
			if got := ackOf(t, w, "plant/secret-topic", 1, uint16(sent), fmt.Appendf(nil, "dev %d confidential-recipe", sent)); got != 0 {
				t.Fatalf("message %d: reason %#x", sent, got)
			}
		}
	}
	send(40)
	g.kill()

	before := treeOf(t, filepath.Join(g.data(), "log"))
	for name, data := range before {
		for _, text := range []string{"confidential", "secret-topic", "recipe"} {
			if bytes.Contains(data, []byte(text)) {
				t.Errorf("%s contains %q", name, text)
			}
		}
	}
	if len(before) == 0 {
		t.Fatal("nothing was stored")
	}

	// Another key, and none at all.
	for _, text := range []string{keyTwo, "off"} {
		g.write("buffer.key", text+"\n")
		r := g.run("run")
		if r.code != 78 || !strings.Contains(r.err, "40 records of uplink/cloud/normal are encrypted with key") || !strings.Contains(r.err, "give that key back") {
			t.Fatalf("started with key %.4s…: %v", text, r)
		}
		if strings.Contains(r.err, "0101010101") || strings.Contains(r.err, "0202020202") {
			t.Errorf("the error tells the key: %s", r.err)
		}
		if after := treeOf(t, filepath.Join(g.data(), "log")); !sameTree(before, after) {
			t.Fatalf("the wrong key %.4s… changed what is on disk", text)
		}
		if r := g.run("buffer", "ls"); r.code != 0 || !strings.Contains(r.out, "40 of 40 records are encrypted with key") {
			t.Errorf("ls without the key: %v", r)
		}
		if r := g.run("buffer", "verify"); r.code != 0 || !strings.Contains(r.out, "40 records are encrypted with a key that is not configured") {
			t.Errorf("verify without the key: %v", r)
		}
		if r := g.run("buffer", "export"); r.code != 78 || strings.Contains(r.out, "confidential") {
			t.Errorf("export without the key: %v", r)
		}
	}

	// Rotation: the new key first.
	g.write("buffer.key", keyTwo+"\n"+keyOne+"\n")
	if list := g.export(); len(list) != 40 || list[0].Payload != "dev 1 confidential-recipe" {
		t.Errorf("export on the stopped gateway: %d records", len(list))
	}
	g.start()
	send(30)
	if r := g.run("buffer", "ls"); strings.Count(r.out, "records are encrypted with key") != 2 {
		t.Errorf("ls after rotation: %v", r)
	}
	if list := g.export(); len(list) != 70 {
		t.Errorf("export beside the running gateway: %d records", len(list))
	}
	g.kill()
	g.start()
	c.start()
	far := consume(t, c.addr(), "application", "plant/#")
	far.requireAll(t, "plant/secret-topic", sent, 30*time.Second)

	// Nothing is left under the old key: it may go. Then the end of encryption.
	waitFor(t, 20*time.Second, "an empty buffer", func() bool { return g.list()[0].Records == 0 })
	g.stop()
	g.write("buffer.key", keyTwo+"\n")
	g.start()
	send(5)
	g.stop()
	g.write("buffer.key", "off\n"+keyTwo+"\n")
	g.start()
	send(5)
	far.requireAll(t, "plant/secret-topic", sent, 30*time.Second)
	far.requireSound(t)
	g.stop()
}

// TestPurgeWithoutKey: what nobody can read any more can be given up, and the gateway goes on.
func TestPurgeWithoutKey(t *testing.T) {
	c := newCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5",
		"[uplink.cloud.buffer]\n  encryption_key = { file = \"buffer.key\" }"))
	g.write("buffer.key", keyOne)
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/a", 1, 1, 20)
	g.stop()
	g.write("buffer.key", keyTwo)
	if r := g.run("run"); r.code != 78 {
		t.Fatalf("started with another key: %v", r)
	}
	if r := g.run("buffer", "purge", "--yes", "--uplink", "cloud"); r.code != 0 || !strings.Contains(r.out, "cloud normal: 20 records purged") {
		t.Fatalf("purge: %v", r)
	}
	g.start()
	c.start()
	far := consume(t, c.addr(), "application", "plant/#")
	publishLines(t, g.addr(devices), "5", "dev", "plant/b", 1, 1, 20)
	far.requireAll(t, "plant/b", 20, 30*time.Second)
	g.stop()
}

// TestDeadLettersWithoutKey: dead letters whose key is lost keep the gateway from starting until they are discarded, and ls names their key.
func TestDeadLettersWithoutKey(t *testing.T) {
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n  topic = \"{rest}\"\n", uplinkTo("cloud", "mqtt://127.0.0.1:9", "5",
		"[uplink.cloud.buffer]\n  encryption_key = { file = \"buffer.key\" }"))
	g.write("buffer.key", keyOne)
	g.start()
	w, err := dial(g.addr(devices), "5", login{client: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	ackOf(t, w, "plant", 1, 1, []byte("nowhere")) // # matched nothing: there is no topic for it
	ackOf(t, w, "plant/a", 1, 2, []byte("stored"))
	waitFor(t, soon, "the dead letter", func() bool { return strings.Contains(g.run("buffer", "dead", "ls").out, "nowhere") })
	if r := g.run("buffer", "ls"); !strings.Contains(r.out, "cloud: 1 dead letters are encrypted with key") {
		t.Errorf("ls: %v", r)
	}
	g.stop()
	g.write("buffer.key", keyTwo)
	if r := g.run("run"); r.code != 78 || !strings.Contains(r.err, "dead/cloud") || !strings.Contains(r.err, "buffer dead discard") {
		t.Fatalf("started with another key: %v", r)
	}
	if r := g.run("buffer", "purge", "--yes", "--uplink", "cloud"); r.code != 0 {
		t.Fatalf("purge: %v", r)
	}
	if r := g.run("buffer", "dead", "discard", "--yes", "--uplink", "cloud"); r.code != 0 || !strings.Contains(r.out, "1 dead letters discarded") {
		t.Fatalf("discard: %v", r)
	}
	g.start()
	g.stop()
}

// treeOf reads every file below a folder.
func treeOf(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(a, b map[string][]byte) bool {
	for name, data := range a {
		if !bytes.Equal(data, b[name]) {
			return false
		}
	}
	return len(a) == len(b)
}
