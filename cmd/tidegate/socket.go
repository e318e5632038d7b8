package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"tidegate/admin"
	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder"
)

// The socket's paths and what they answer: JSON, and JSON lines for an export. An answer that began well and could not be
// finished has the reason in a trailer.
const (
	pathStatus = "/status"
	pathList   = "/buffer"
	pathExport = "/buffer/export"
	pathVerify = "/buffer/verify"
	pathPurge  = "/buffer/purge"

	pathReload = "/reload"

	pathResend  = "/buffer/dead/resend"
	pathDiscard = "/buffer/dead/discard"

	errorTrailer = "Tidegate-Error"
)

// socketHandler answers the commands of this machine.
func (g *gateway) socketHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, _ *http.Request) { answer(w, g.Status(), nil) })
	mux.HandleFunc("GET "+pathList, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, listQueues(g.buffer, g.current.Load().Uplinks), nil)
	})
	mux.HandleFunc("GET "+pathVerify, func(w http.ResponseWriter, _ *http.Request) {
		report, err := verifyLog(g.buffer)
		answer(w, report, err)
	})
	mux.HandleFunc("POST "+pathPurge, func(w http.ResponseWriter, r *http.Request) {
		s := selectionOf(r.URL.Query())
		rows, err := purgeQueues(g.buffer, s, func(q *buffer.Queue) (uint64, error) { return q.Purge(), nil })
		if err == nil {
			g.log.Warn("records purged on request", "uplink", s.uplink, "lane", s.lane, "dead", s.dead, "purged", rows)
		}
		answerRows(w, rows, err)
	})
	mux.HandleFunc("POST "+pathReload, func(w http.ResponseWriter, _ *http.Request) { answer(w, g.Reload("command"), nil) })
	mux.HandleFunc("POST "+pathResend, func(w http.ResponseWriter, r *http.Request) {
		s := selectionOf(r.URL.Query())
		rows, err := eachDead(g.buffer, s, func(uplink string, _ *buffer.Queue) (forwarder.DeadResult, error) {
			return g.forwarder.ResendDead(r.Context(), uplink, s.letters)
		})
		g.log.Info("dead letters resent on request", "uplink", s.uplink, "resent", rows, "err", err)
		answerRows(w, rows, err)
	})
	mux.HandleFunc("POST "+pathDiscard, func(w http.ResponseWriter, r *http.Request) {
		s := selectionOf(r.URL.Query())
		rows, err := eachDead(g.buffer, s, func(_ string, q *buffer.Queue) (forwarder.DeadResult, error) {
			return forwarder.DiscardDead(q, s.letters)
		})
		g.log.Warn("dead letters discarded on request", "uplink", s.uplink, "discarded", rows, "err", err)
		answerRows(w, rows, err)
	})
	mux.HandleFunc("GET "+pathExport, func(w http.ResponseWriter, r *http.Request) {
		s := selectionOf(r.URL.Query())
		if _, err := s.pick(g.buffer); err != nil {
			answer(w, nil, err)
			return
		}
		w.Header().Set("Content-Type", "application/jsonl")
		w.Header().Set("Trailer", errorTrailer)
		if err := exportRecords(g.buffer, s, w); err != nil {
			w.Header().Set(errorTrailer, oneLine(err))
		}
	})
	return mux
}

// answer writes v, or what went wrong as text.
func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, oneLine(err), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// answerRows writes what was done, uplink by uplink, and behind it what went wrong with one of them.
func answerRows[T any](w http.ResponseWriter, rows []T, err error) {
	if len(rows) == 0 {
		answer(w, rows, err)
		return
	}
	w.Header().Set("Trailer", errorTrailer)
	answer(w, rows, nil)
	if err != nil {
		w.Header().Set(errorTrailer, oneLine(err))
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func selectionOf(q url.Values) selection {
	return selection{
		uplink: q.Get("uplink"), lane: q.Get("lane"), dead: q.Get("dead") == "true",
		letters: forwarder.DeadSelection{ID: q.Get("id"), Seq: q.Get("seq")},
	}
}

func (s selection) values() url.Values {
	v := url.Values{}
	v.Set("uplink", s.uplink)
	v.Set("lane", s.lane)
	if s.dead {
		v.Set("dead", "true")
	}
	if s.letters != (forwarder.DeadSelection{}) {
		v.Set("id", s.letters.ID)
		v.Set("seq", s.letters.Seq)
	}
	return v
}

// remote is the running gateway of a data folder, as the commands see it.
type remote struct{ http *http.Client }

func dialGateway(c *config.Config) remote { return remote{admin.Client(c.Gateway.DataDir)} }

// call asks the gateway and reads its answer into v, or copies it to v if that is an io.Writer; that much is done also where the
// answer has an error at its end. The error wraps admin.ErrNoGateway when none runs.
func (r remote) call(method, path string, query url.Values, v any) error {
	req, err := http.NewRequest(method, "http://tidegate"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return fmt.Errorf("the gateway answered: %s", strings.TrimSpace(string(text)))
	}
	if err := readAnswer(resp.Body, v); err != nil {
		return err
	}
	if text := resp.Trailer.Get(errorTrailer); text != "" {
		return fmt.Errorf("the gateway answered: %s", text)
	}
	return nil
}

// readAnswer reads to the end, behind which the trailer is.
func readAnswer(body io.Reader, v any) error {
	w, ok := v.(io.Writer)
	if !ok {
		if err := json.NewDecoder(body).Decode(v); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, body)
		return err
	}
	buffered := bufio.NewWriterSize(w, 64<<10)
	if _, err := io.Copy(buffered, body); err != nil {
		return err
	}
	return buffered.Flush()
}
