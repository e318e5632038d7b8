package wire

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

func TestConfirmableIsAnsweredOnItsAcknowledgement(t *testing.T) {
	run(t, Options{}, atOnce, func(r *rig) {
		r.send(1, con(7, "ab"))
		r.want(1, ack(7, "ab", codes.Changed))
	})
}

func TestParkedAndAnsweredWithinASecondIsPiggybacked(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		r.send(1, con(7, "ab"))
		time.Sleep(900 * time.Millisecond)
		r.want(1)
		s.answer(codes.Changed)
		r.want(1, ack(7, "ab", codes.Changed))
		time.Sleep(5 * time.Minute)
		r.want(1) // no deadline is left behind
	})
}

func TestNonConfirmableIsAnsweredAlike(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		r.send(1, non(7, "ab"))
		time.Sleep(3 * time.Second)
		r.want(1) // nothing to acknowledge
		s.answer(codes.Forbidden)
		m := r.one()
		if m.Type != coap.NonConfirmable || m.Code != codes.Forbidden || string(m.Token) != "ab" {
			t.Errorf("answered %v", m)
		}
		r.send(1, non(8, "cd"))
		s.answer(codes.Changed)
		if again := r.one(); again.MessageID == m.MessageID {
			t.Errorf("two responses have the message ID %d", m.MessageID)
		}
	})
}

func TestLateAnswerIsSeparateAndSentUntilAcknowledged(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		r.send(1, con(7, "ab"))
		time.Sleep(acknowledgeAfter + tick)
		r.want(1, bareAck(7))
		time.Sleep(3 * time.Second)
		s.answer(codes.Changed)
		m := r.one()
		if m.Type != coap.Confirmable || m.Code != codes.Changed || string(m.Token) != "ab" {
			t.Fatalf("the separate response is %v", m)
		}
		// RFC 7252, 4.2: sent again after 2 s times 1 to 1.5, then after twice as long each time, 4 times.
		began, first := time.Now(), time.Duration(0)
		for i := range maxRetransmit {
			var again []packet
			for again = r.take(); len(again) == 0; again = r.take() {
				time.Sleep(10 * time.Millisecond)
				if time.Since(began) > time.Minute {
					t.Fatalf("retransmission %d does not come", i+1)
				}
			}
			if decode(t, again[0].b).MessageID != m.MessageID {
				t.Fatalf("another message ID: %s", text(again[0].b))
			}
			wait := time.Since(began)
			if i == 0 {
				if first = wait; first < 2*time.Second || first > 3*time.Second+2*tick {
					t.Fatalf("the first retransmission comes after %v", first)
				}
			} else if want := first << i; wait < want-3*tick<<i || wait > want+3*tick<<i {
				t.Fatalf("retransmission %d comes after %v, want about %v", i+1, wait, want)
			}
			began = time.Now()
		}
		if n := r.server.Stats().Parked; n != 1 {
			t.Errorf("%d parked while the last retransmission may be acknowledged", n)
		}
		time.Sleep(2 * time.Minute)
		r.want(1)
		if st := r.server.Stats(); st.GivenUp != 1 || st.Retransmissions != maxRetransmit || st.Parked != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAcknowledgementAndResetEndASeparateResponse(t *testing.T) {
	for name, end := range map[string]func(int) []byte{"acknowledgement": bareAck, "reset": rst} {
		t.Run(name, func(t *testing.T) {
			var s shelf
			run(t, Options{}, s.handle, func(r *rig) {
				r.send(1, con(7, "ab"))
				time.Sleep(2 * time.Second)
				s.answer(codes.Changed)
				sent := r.take()
				m := decode(t, sent[1].b)
				r.send(1, bareAck(int(m.MessageID)+1)) // of something else
				r.send(2, end(int(m.MessageID)))       // from somebody else
				if n := r.server.Stats().Parked; n != 1 {
					t.Fatalf("%d parked", n)
				}
				r.send(1, end(int(m.MessageID)))
				r.send(1, end(int(m.MessageID))) // once more does no harm
				time.Sleep(5 * time.Minute)
				r.want(1)
				if st := r.server.Stats(); st.Parked != 0 || st.Retransmissions != 0 || st.Unexpected != 3 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// TestOneSeparateResponseAtATime [RFC 7252, 4.7, NSTART].
func TestOneSeparateResponseAtATime(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		for i := range 3 {
			r.send(1, con(i, "t"+string(rune('a'+i))))
		}
		time.Sleep(2 * time.Second)
		r.want(1, bareAck(0), bareAck(1), bareAck(2))
		for range 3 {
			s.answer(codes.Changed)
		}
		for i := range 3 {
			m := r.one()
			if want := "t" + string(rune('a'+i)); string(m.Token) != want {
				t.Fatalf("response %d has the token %q, want %q", i, m.Token, want)
			}
			time.Sleep(time.Second)
			r.want(1)
			r.send(1, bareAck(int(m.MessageID)))
		}
		r.want(1)
		// Another peer does not wait for the first.
		r.send(1, con(10, "x"))
		r.send(2, con(10, "y"))
		time.Sleep(2 * time.Second)
		r.take()
		s.answer(codes.Changed)
		s.answer(codes.Changed)
		if n := len(r.take()); n != 2 {
			t.Errorf("%d responses at once to two peers, want 2", n)
		}
	})
}

func TestDuplicateWhileItsAnswerIsPending(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		r.send(1, con(7, "ab"))
		r.send(1, con(7, "ab"))
		r.want(1)
		time.Sleep(2 * time.Second)
		r.want(1, bareAck(7))
		r.send(1, con(7, "ab"))
		r.want(1, bareAck(7))
		s.answer(codes.Changed)
		m := r.one()
		r.send(1, con(7, "ab"))
		r.want(1, bareAck(7)) // the response is under way on its own
		r.send(1, bareAck(int(m.MessageID)))
		if s.count() != 1 {
			t.Errorf("the handler ran %d times", s.count())
		}
		if n := r.server.Stats().Duplicates; n != 3 {
			t.Errorf("%d duplicates counted, want 3", n)
		}
	})
}

func TestDuplicateGetsTheSameBytes(t *testing.T) {
	large := strings.Repeat("y", 500)
	for name, resp := range map[string]Response{
		"small":        {Code: codes.Changed},
		"with options": {Code: codes.ServiceUnavailable, Options: coap.Options{{ID: coap.MaxAge, Value: []byte{5}}}},
		"large":        {Code: codes.BadRequest, Payload: []byte(large)},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			run(t, Options{}, func(r *Request) { calls++; r.Reply(resp) }, func(r *rig) {
				r.send(1, con(7, "abcdefgh"))
				first := r.take()
				time.Sleep(246 * time.Second)
				r.send(1, con(7, "abcdefgh"))
				r.want(1, first[0].b)
				r.send(2, con(7, "abcdefgh")) // of another peer it is none
				if n := len(r.take()); n != 1 || calls != 2 {
					t.Errorf("%d answers, %d calls", n, calls)
				}
				time.Sleep(2 * time.Second) // EXCHANGE_LIFETIME is over
				r.send(1, con(7, "abcdefgh"))
				if calls != 3 {
					t.Errorf("%d calls, want 3", calls)
				}
			})
		})
	}
}

func TestNotADuplicate(t *testing.T) {
	calls := 0
	run(t, Options{}, func(r *Request) { calls++; atOnce(r) }, func(r *rig) {
		for _, b := range [][]byte{
			con(7, "ab"), con(8, "ab"), con(7, "cd"), con(7, ""),
			encode(coap.Confirmable, codes.POST, 7, "ab", nil, "other"), // a device that began to count again
		} {
			r.send(1, b)
		}
		if calls != 5 || len(r.take()) != 5 {
			t.Errorf("%d calls, want 5", calls)
		}
	})
}

func TestDuplicateNonConfirmableIsIgnored(t *testing.T) {
	calls := 0
	run(t, Options{}, func(r *Request) { calls++; atOnce(r) }, func(r *rig) {
		r.send(1, non(7, "ab"))
		r.one()
		for range 4 { // a Thread parent delivers five copies
			r.send(1, non(7, "ab"))
		}
		r.want(1)
		time.Sleep(146 * time.Second) // NON_LIFETIME
		r.send(1, non(7, "ab"))
		r.one()
		if calls != 2 {
			t.Errorf("%d calls, want 2", calls)
		}
	})
}

// TestGetIsAskedAgainWhenItsAnswerIsForgotten: what changes nothing may run twice (4.5), anything else never does.
func TestGetIsAskedAgainWhenItsAnswerIsForgotten(t *testing.T) {
	for _, method := range []codes.Code{codes.GET, codes.POST} {
		calls := 0
		h := func(r *Request) {
			calls++
			r.Reply(Response{Code: codes.Content, Payload: bytes.Repeat([]byte("z"), 1000)})
		}
		run(t, Options{}, h, func(r *rig) {
			r.server.stash.bound = 1500
			r.send(1, encode(coap.Confirmable, method, 1, "a", nil, ""))
			r.send(1, encode(coap.Confirmable, method, 2, "b", nil, "")) // takes the room of the first
			r.take()
			r.send(1, encode(coap.Confirmable, method, 1, "a", nil, ""))
			again := r.take()
			if method == codes.GET && (calls != 3 || len(again[0].b) < 1000) {
				t.Errorf("GET: %d calls, %d bytes", calls, len(again[0].b))
			}
			if method == codes.POST && (calls != 2 || !bytes.Equal(again[0].b, ack(1, "a", codes.Content))) {
				t.Errorf("POST: %d calls, %s", calls, texts(again))
			}
		})
	}
}

// TestNoResponse [RFC 7967].
func TestNoResponse(t *testing.T) {
	option := func(v ...byte) coap.Options { return coap.Options{{ID: coap.NoResponse, Value: v}} }
	for _, c := range []struct {
		name    string
		options coap.Options
		code    codes.Code
		silent  bool
	}{
		{"2.xx not wanted", option(2), codes.Changed, true},
		{"2.xx not wanted, 4.xx comes", option(2), codes.BadRequest, false},
		{"4.xx not wanted", option(8), codes.Forbidden, true},
		{"5.xx not wanted", option(16), codes.ServiceUnavailable, true},
		{"nothing wanted", option(26), codes.ServiceUnavailable, true},
		{"all wanted", option(0), codes.Changed, false},
		{"all wanted, empty", option(), codes.Changed, false},
		{"a value that it cannot have", option(0, 2), codes.Changed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s shelf
			run(t, Options{}, s.handle, func(r *rig) {
				r.send(1, encode(coap.NonConfirmable, codes.POST, 1, "n", c.options, "x"))
				s.answer(c.code)
				if n := len(r.take()); (n == 0) != c.silent {
					t.Errorf("non-confirmable: %d messages", n)
				}
				quick := encode(coap.Confirmable, codes.POST, 2, "q", c.options, "x")
				r.send(1, quick)
				s.answer(c.code)
				want := ack(2, "q", c.code)
				if c.silent {
					want = bareAck(2)
				}
				r.want(1, want)
				r.send(1, quick)
				r.want(1, want)
			})
		})
	}
}

// TestAcknowledgementThatMeansSuccessWaitsForIt: to a peer that wants no 2.04 the acknowledgement is the confirmation.
func TestAcknowledgementThatMeansSuccessWaitsForIt(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		b := encode(coap.Confirmable, codes.POST, 1, "q", coap.Options{{ID: coap.NoResponse, Value: []byte{2}}}, "x")
		r.send(1, b)
		time.Sleep(10 * time.Second)
		r.send(1, b)
		r.want(1)
		s.answer(codes.Changed)
		r.want(1, bareAck(1))
		r.send(1, b)
		r.want(1, bareAck(1))
	})
}

func TestTooManyParkedAreBusy(t *testing.T) {
	var s shelf
	run(t, Options{MaxParked: 40}, s.handle, func(r *rig) {
		for i := range 12 { // a quarter of 40 for one peer
			r.send(1, con(i, "a"))
		}
		if got := r.take(); len(got) != 2 || decode(t, got[0].b).Code != codes.ServiceUnavailable {
			t.Fatalf("one peer: %s", texts(got))
		}
		for peer := 2; peer <= 5; peer++ {
			for i := range 10 {
				r.send(peer, con(i, "a"))
			}
		}
		if n := len(r.take()); n != 10 {
			t.Fatalf("%d refused, want 10: 40 may wait altogether", n)
		}
		for range 40 {
			s.answer(codes.Changed)
		}
		if n := len(r.take()); n != 40 {
			t.Fatalf("%d answers, want 40", n)
		}
		r.send(1, con(100, "a"))
		r.want(1) // taken again
		if n := r.server.Stats().Parked; n != 1 {
			t.Errorf("%d parked", n)
		}
	})
}

func TestOneAnswerForEachRequest(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		run(t, Options{}, func(*Request) {}, func(r *rig) {
			r.send(1, con(1, "a"))
			r.want(1, ack(1, "a", codes.InternalServerError))
		})
	})
	t.Run("several", func(t *testing.T) {
		h := func(r *Request) {
			atOnce(r)
			r.Reply(Response{Code: codes.BadRequest})
			r.Reject()
			r.Park().Reply(Response{Code: codes.BadRequest})
		}
		run(t, Options{}, h, func(r *rig) {
			r.send(1, con(1, "a"))
			r.want(1, ack(1, "a", codes.Changed))
			if n := r.server.Stats().Parked; n != 0 {
				t.Errorf("%d parked", n)
			}
		})
	})
	t.Run("parked twice answered", func(t *testing.T) {
		h := func(r *Request) {
			x := r.Park()
			x.Reply(Response{Code: codes.Changed})
			x.Reply(Response{Code: codes.BadRequest})
		}
		run(t, Options{}, h, func(r *rig) {
			r.send(1, con(1, "a"))
			r.want(1, ack(1, "a", codes.Changed))
		})
	})
	t.Run("rejected", func(t *testing.T) {
		calls := 0
		run(t, Options{}, func(r *Request) { calls++; r.Reject() }, func(r *rig) {
			r.send(1, con(1, "a"))
			r.send(1, con(1, "a"))
			r.want(1, rst(1), rst(1))
			r.send(1, non(2, "a"))
			r.send(1, non(2, "a"))
			r.want(1, rst(2))
			if calls != 2 {
				t.Errorf("%d calls", calls)
			}
		})
	})
	t.Run("too large to send", func(t *testing.T) {
		h := func(r *Request) { r.Reply(Response{Code: codes.Content, Payload: make([]byte, 66000)}) }
		run(t, Options{}, h, func(r *rig) {
			r.send(1, con(1, "a"))
			r.want(1, ack(1, "a", codes.InternalServerError))
		})
	})
}

func TestStopAnswersWhatIsDurableInTime(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		for i := range 3 {
			r.send(1, con(i, "a"))
		}
		time.Sleep(1500 * time.Millisecond)
		s.answer(codes.Changed)
		m := r.take() // three acknowledgements and a response that is under way
		if len(m) != 4 {
			t.Fatal(texts(m))
		}
		r.send(2, con(9, "b"))
		r.end()
		synctest.Wait()
		r.send(3, con(1, "c")) // is not read any more
		s.answer(codes.Changed)
		time.Sleep(1500 * time.Millisecond)
		s.answer(codes.Changed)
		s.answer(codes.Changed)
		if got := r.take(); len(got) != 3 || !bytes.Equal(got[2].b, ack(9, "b", codes.Changed)) {
			t.Errorf("while stopping: %s", texts(got))
		}
		began := time.Now()
		if err := <-r.ended; err != nil || time.Since(began) != 0 {
			t.Errorf("ended %v later with %v, want at once: nothing waits", time.Since(began), err)
		}
		r.ended <- nil
		if s.count() != 4 {
			t.Errorf("%d requests, want 4", s.count())
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	var s shelf
	run(t, Options{}, s.handle, func(r *rig) {
		r.send(1, con(1, "a"))
		r.end()
		began := time.Now()
		<-r.ended
		r.ended <- nil
		if d := time.Since(began); d != defaultGrace {
			t.Errorf("stopped after %v, want %v", d, defaultGrace)
		}
		s.answer(codes.Changed) // its peer hears nothing, and nothing breaks
		r.want(1)
	})
}

// failing is a Conn whose reads and writes fail when told to.
type failing struct {
	*memConn
	reads chan error
}

func (c *failing) Read(b []byte) (int, Path, error) {
	select {
	case err := <-c.reads:
		return 0, Path{}, err
	default:
		return c.memConn.Read(b)
	}
}

func (c *failing) Write([]byte, Path) error { return errors.New("no buffer space available") }

// TestTrouble: a socket that cannot be read is tried again, with pauses, and its owner hears of it once.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &failing{newMemConn(func([]byte, Path) {}), make(chan error, 100)}
		for range 10 {
			conn.reads <- errors.New("broken")
		}
		var told []error
		s := New(Options{Handler: atOnce, OnTrouble: func(_ Conn, err error) { told = append(told, err) }}, conn)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		if len(told) != 1 || told[0] == nil {
			t.Fatalf("told %v", told)
		}
		time.Sleep(10 * time.Second)
		conn.in <- packet{con(1, "a"), peerPath(1)}
		synctest.Wait()
		if len(told) != 2 || told[1] != nil {
			t.Errorf("told %v", told)
		}
		if n := s.Stats().SendFailed; n != 1 {
			t.Errorf("%d failed sends", n)
		}
		for range 10 {
			conn.reads <- errors.New("broken again")
		}
		conn.in <- packet{con(2, "a"), peerPath(1)} // it fails at the next read
		synctest.Wait()
		cancel() // ends a pause
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("closed once more: %v", err)
		}
	})
}
