package edge

import (
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestAuditCountsWhatItLeavesOut: lines written and lines said to be left out add up to what happened.
func TestAuditCountsWhatItLeavesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		a := newAudit(slog.New(slog.NewTextHandler(log, nil)))
		var s sparing
		const n = 5000
		for i := range n {
			a.refused(&s, "client refused", "credentials", "client "+strconv.Itoa(i%400), "user", strings.Repeat("x", 1000))
			time.Sleep(7 * time.Millisecond)
		}
		time.Sleep(time.Hour) // and one more line that says what is left
		for i := range 400 {
			a.refused(&s, "client refused", "credentials", "client "+strconv.Itoa(i))
			time.Sleep(time.Second)
		}
		a.refused(&s, "client refused", "credentials", "last")
		lines, silent := 0, 0
		for _, m := range regexp.MustCompile(`not_logged=(\d+)`).FindAllStringSubmatch(log.String(), -1) {
			k, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			lines, silent = lines+1, silent+k
		}
		if lines+silent != n+401 {
			t.Errorf("%d lines and %d left out, of %d", lines, silent, n+401)
		}
		if most := 200 + 5*35 + 401 + 1; lines > most {
			t.Errorf("%d lines", lines)
		}
		if i := strings.Index(log.String(), strings.Repeat("x", maxBrief+1)); i >= 0 {
			t.Error("what a stranger wrote is not cut")
		}
	})
}
