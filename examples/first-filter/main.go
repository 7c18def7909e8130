// First-filter is the README's filter grown up: it has a configuration, looks at recipients
// and subjects, and leaves a mark. README.md beside it walks through it.
package main

import (
	"strconv"
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func main() {}

func init() { newFilter().Serve() }

// newFilter returns the filter; main_test.go runs it natively.
func newFilter() *filter.Filter {
	f := filter.New("first-filter")

	// Configure runs once, when the filter is loaded. What it refuses, gateway check reports.
	var robots []string
	var shout bool
	f.Configure(func(c filter.Config) error {
		c.Only("robots", "refuse_shouting")
		robots = c.Strings("robots", "robot")
		shout = c.Bool("refuse_shouting", false)
		return c.Err()
	})

	// At RCPT TO nothing but the envelope is known. A refusal here is cheap for everybody.
	f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
		for _, name := range robots {
			if strings.EqualFold(r.Rcpt().Local(), name) {
				w.Reject(550, "5.7.1", "people only, please")
			}
		}
	})

	// OnData is called when the whole message is there and no reply has been sent.
	f.OnData(func(w filter.Reply, m *filter.Message) {
		subject := filter.Decode(m.Header.Get("Subject"))
		if shout && subject != "" && subject == strings.ToUpper(subject) && subject != strings.ToLower(subject) {
			w.Reject(550, "5.7.1", "no need to shout")
			return
		}
		lines, err := countLines(m.Body)
		if err != nil {
			w.Tempfail(451, "4.3.0", "the message cannot be read now")
			return
		}
		if err := m.Header.Add("X-Lines", strconv.Itoa(lines)); err != nil {
			m.Log(filter.LevelWarn, "no X-Lines", "err", err.Error())
		}
	})
	return f
}

// countLines reads the body in windows, so that a large message needs no more memory than a
// small one.
func countLines(body *filter.Body) (int, error) {
	lines, buf := 0, make([]byte, 16<<10)
	for off := int64(0); off < body.Size(); {
		n, err := body.ReadAt(buf, off)
		for _, c := range buf[:n] {
			if c == '\n' {
				lines++
			}
		}
		off += int64(n)
		if n == 0 && err != nil {
			return 0, err
		}
	}
	return lines, nil
}
