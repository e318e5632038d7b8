package pipeline

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"tidegate/config"
	"tidegate/message"
)

func mustCompile(t testing.TB, routes map[string]config.Route, uplinks ...string) *Chain {
	t.Helper()
	c, err := Compile("gw", routes, uplinks)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// describe writes copies as ROUTE>UPLINK:TOPIC with ! for the dead letters and ~ for merged.
func describe(c *Chain, copies []Copy) string {
	var parts []string
	for _, k := range copies {
		s := fmt.Sprintf("%s>%s:%s", k.Route.Name, c.uplinks[k.Uplink], k.Topic)
		if k.Err != nil {
			s += "!"
		}
		if k.Merged {
			s += "~"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

func TestProcess(t *testing.T) {
	routes := map[string]config.Route{
		"alarms":    {From: []string{"plant/+/alarm"}, Lane: "urgent"},
		"telemetry": {From: []string{"plant/#"}, Except: []string{"plant/+/debug/#"}, To: []string{"a", "b"}},
		"shaped":    {From: []string{"shape/+/#", "other"}, Topic: "s/{2}/{rest}/{uplink}", To: []string{"b"}},
		"byuser":    {From: []string{"u/#"}, Topic: "{user}/{1}", To: []string{"a"}},
		"twice":     {From: []string{"twice/x", "twice/#"}, Topic: "t/{rest}", To: []string{"a"}},
	}
	c := mustCompile(t, routes, "a", "b")
	for _, k := range []struct{ topic, want string }{
		{"plant/p1/temp", "telemetry>a:plant/p1/temp telemetry>b:plant/p1/temp"},
		{"plant/p1/alarm", "alarms>a:plant/p1/alarm alarms>b:plant/p1/alarm telemetry>a:plant/p1/alarm~ telemetry>b:plant/p1/alarm~"},
		{"plant/p1/debug", ""},
		{"plant/p1/debug/x", ""},
		{"plant", "telemetry>a:plant telemetry>b:plant"},
		{"shape/k/r/s", "shaped>b:s/k/r/s/b"},
		{"other", "shaped>b:s///b"},
		{"u/x", "byuser>a:hmi/u"},
		{"nothing", ""},
		{"twice/x", "twice>a:t/"},
		{"twice/y", "twice>a:t/y"},
	} {
		for range 2 { // the second time from the cache
			got := c.Process(nil, &message.Message{Topic: k.topic, Source: message.Source{User: "hmi"}})
			if d := describe(c, got); d != k.want {
				t.Errorf("%s: got %q, want %q", k.topic, d, k.want)
			}
		}
	}
}

func TestReservedTopicsMatchNoRoute(t *testing.T) {
	c := mustCompile(t, map[string]config.Route{
		"all": {From: []string{"#", "+/#", "$SYS/#", "tidegate/#"}},
	}, "a")
	for _, topic := range []string{"$SYS/x", "$x", "tidegate", "tidegate/gw/status"} {
		if got := c.Process(nil, &message.Message{Topic: topic}); len(got) != 0 {
			t.Errorf("%s matches %s", topic, describe(c, got))
		}
	}
	if got := c.Process(nil, &message.Message{Topic: "tidegated"}); len(got) != 1 {
		t.Error("tidegated is an ordinary topic")
	}
}

// A device must not reach the gateway's own topics, or the broker's, at the cloud by what a template makes of its topic.
func TestReservedResultsAreNotSent(t *testing.T) {
	c := mustCompile(t, map[string]config.Route{"cut": {From: []string{"plant/#"}, Topic: "{rest}"}, "user": {From: []string{"u"}, Topic: "{user}"}}, "up")
	for _, m := range []message.Message{
		{Topic: "plant/$SYS/x"},
		{Topic: "plant/tidegate/g13/status"},
		{Topic: "plant/tidegate"},
		{Topic: "u", Source: message.Source{User: "$share"}},
	} {
		got := c.Process(nil, &m)
		if len(got) != 1 || !errors.Is(got[0].Err, message.ErrInvalid) {
			t.Errorf("%s: %+v, want one copy for the dead letters", m.Topic, got)
		}
	}
	if got := c.Process(nil, &message.Message{Topic: "plant/a"}); len(got) != 1 || got[0].Err != nil || got[0].Topic != "a" {
		t.Errorf("plant/a: %+v", got)
	}
}

// What the configuration itself names below a $ is a cloud service's and is sent.
func TestServiceTopicsAreSent(t *testing.T) {
	for template, sent := range map[string]bool{"$aws/rules/x/{rest}": true, "$aws/{rest}": true, "${rest}": false, "$a{rest}": false} {
		c := mustCompile(t, map[string]config.Route{"r": {From: []string{"plant/#"}, Topic: template}}, "up")
		if got := c.Process(nil, &message.Message{Topic: "plant/SYS/x"}); len(got) != 1 || (got[0].Err == nil) != sent {
			t.Errorf("%s: %+v, sent: want %t", template, got, sent)
		}
	}
}

func TestUrgentWinsWhateverTheOrder(t *testing.T) {
	for _, lanes := range [][2]string{{"urgent", "normal"}, {"normal", "urgent"}, {"normal", "normal"}} {
		c := mustCompile(t, map[string]config.Route{
			"a": {From: []string{"x"}, Lane: lanes[0]},
			"b": {From: []string{"+"}, Lane: lanes[1]},
		}, "up")
		got := c.Process(nil, &message.Message{Topic: "x"})
		want := "a"
		if lanes[1] == "urgent" {
			want = "b"
		}
		for _, k := range got {
			if k.Merged == (k.Route.Name == want) {
				t.Errorf("%v: got %s", lanes, describe(c, got))
			}
		}
	}
}

func TestInvalidResultIsItsOwnCopy(t *testing.T) {
	c := mustCompile(t, map[string]config.Route{
		"bad":  {From: []string{"x"}, Topic: "{user}"},
		"bad2": {From: []string{"x"}, Topic: "{user}"},
		"good": {From: []string{"x"}},
	}, "up")
	got := c.Process(nil, &message.Message{Topic: "x", Source: message.Source{User: "a/#"}})
	if d := describe(c, got); d != "bad>up:a/#! bad2>up:a/#! good>up:x" {
		t.Errorf("got %s", d)
	}
}

func TestShape(t *testing.T) {
	c := mustCompile(t, map[string]config.Route{
		"a": {From: []string{"x"}, Topic: "y", QoS: 2, Retain: "clear"},
		"b": {From: []string{"x"}, Topic: "z"},
	}, "up")
	m := message.Message{ID: message.NewID(), Topic: "x", Retain: true, Payload: []byte("p")}
	got := c.Process(nil, &m)
	a, b := m, m
	got[0].Shape(&a)
	got[1].Shape(&b)
	if a.QoS != 2 || a.Retain || a.Topic != "y" || a.ID != m.ID || string(a.Payload) != "p" {
		t.Errorf("a: %+v", a)
	}
	if b.QoS != 1 || !b.Retain || b.Topic != "z" {
		t.Errorf("b: %+v", b)
	}
}

func TestCompileReportsEveryProblem(t *testing.T) {
	_, err := Compile("gw", map[string]config.Route{
		"a": {},
		"b": {From: []string{"a/#/b"}},
		"c": {From: []string{"a"}, Except: []string{"+x"}},
		"d": {From: []string{"a"}, Topic: "{what}"},
		"e": {From: []string{"a"}, QoS: 3},
		"f": {From: []string{"a"}, Retain: "maybe"},
		"g": {From: []string{"a"}, Lane: "fast"},
		"h": {From: []string{"a"}, To: []string{"nowhere"}},
	}, []string{"up"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, route := range "abcdefgh" {
		if !strings.Contains(err.Error(), fmt.Sprintf("route %c:", route)) {
			t.Errorf("route %c is not reported in %v", route, err)
		}
	}
}

// TestMatcherAgainstMatch holds the trie to the definition: whatever message.Match says of each filter.
func TestMatcherAgainstMatch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	levels := []string{"a", "b", "c", "", "+"}
	word := func(n int) string {
		parts := make([]string, 1+rnd.IntN(4))
		for i := range parts {
			parts[i] = levels[rnd.IntN(n)]
		}
		return strings.Join(parts, "/")
	}
	var m matcher
	var filters []string
	for len(filters) < 300 {
		f := word(5)
		if rnd.IntN(3) == 0 {
			f += "/#"
		}
		if message.ValidFilter(f) != nil {
			continue
		}
		m.add(f, filterRef{route: len(filters)})
		filters = append(filters, f)
	}
	for range 2000 {
		topic := word(4)
		if topic == "" {
			continue
		}
		var got, want []int
		for _, r := range m.find(nil, topic) {
			got = append(got, r.route)
		}
		slices.Sort(got)
		for i, f := range filters {
			if message.Match(f, topic) {
				want = append(want, i)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("topic %q: got %v, want %v", topic, got, want)
		}
	}
}

func FuzzMatcher(f *testing.F) {
	f.Add("a/+/#", "a/b/c")
	f.Add("#", "x")
	f.Add("a/#", "a")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if message.ValidFilter(filter) != nil || message.ValidName(topic) != nil ||
			strings.HasPrefix(filter, "$share/") || message.Reserved(topic) {
			return
		}
		var m matcher
		m.add(filter, filterRef{})
		if got, want := len(m.find(nil, topic)) == 1, message.Match(filter, topic); got != want {
			t.Fatalf("filter %q topic %q: got %v, want %v", filter, topic, got, want)
		}
	})
}

func TestCacheIsBoundedAndConcurrent(t *testing.T) {
	c := mustCompile(t, map[string]config.Route{"a": {From: []string{"x/#"}, Topic: "y/{rest}"}}, "up")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3 * cacheTopics {
				topic := fmt.Sprintf("x/%d/%d", g, i)
				got := c.Process(nil, &message.Message{Topic: topic})
				if len(got) != 1 || got[0].Topic != "y"+topic[1:] {
					t.Errorf("%s: got %s", topic, describe(c, got))
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(c.cache.hits); n > cacheTopics {
		t.Errorf("%d topics are remembered, bound is %d", n, cacheTopics)
	}
	long := "x/" + strings.Repeat("l", cacheTopicBytes)
	c.Process(nil, &message.Message{Topic: long})
	if _, ok := c.cache.get(long); ok {
		t.Error("an overlong topic is remembered")
	}
}

func BenchmarkProcess(b *testing.B) {
	routes := map[string]config.Route{}
	for i := range 200 {
		routes[fmt.Sprintf("r%d", i)] = config.Route{From: []string{fmt.Sprintf("plant/%d/#", i)}, Topic: "sites/{gateway}/{topic}"}
	}
	c := mustCompile(b, routes, "up")
	topics := make([]string, 1000)
	for i := range topics {
		topics[i] = fmt.Sprintf("plant/%d/press/%d", i%200, i)
	}
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		var dst []Copy
		for i := 0; b.Loop(); i++ {
			dst = c.Process(dst[:0], &message.Message{Topic: topics[i%len(topics)]})
		}
	})
	b.Run("uncached", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			c.match(topics[i%len(topics)])
		}
	})
}
