package delivery

import (
	"bytes"
	"io"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// report.go: what the sender is told (RFC 3461, RFC 3464). There is one report for all
// recipients of a message that share a fate in one attempt, and none about a report: its
// sender is the null path.

type reportKind int

const (
	reportFailed reportKind = iota
	reportDelayed
	reportRelayed // the next hop took it and does not report for us
)

// event is the word of NOTIFY that asks for the report.
func (k reportKind) event() smtp.Notify {
	return [...]smtp.Notify{smtp.NotifyFailure, smtp.NotifyDelay, smtp.NotifySuccess}[k]
}

// maxReturned is how much of a message a report brings back at most.
const maxReturned = 100 << 10

// report makes the report about some recipients of a message, or returns nil if nobody wants
// one.
func (e *Engine) report(m *store.Message, content smtp.Content, kind reportKind, who []int, now time.Time) (*store.Report, error) {
	if m.Sender.Path.IsNull() {
		return nil, nil
	}
	var list []message.ReportRecipient
	for _, i := range who {
		if r := &m.Recipients[i]; message.Wants(r.Notify, kind.event()) {
			list = append(list, e.reportRecipient(m, r, kind, now))
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	original, err := returned(content)
	if err != nil {
		return nil, err
	}
	r := message.Report{Reporting: e.own, To: m.Sender.Path, EnvID: m.Sender.EnvID, Arrived: m.Arrived, Now: now,
		Return: m.Sender.Return, Original: original, OriginalSize: m.Size, Recipients: list}
	text, err := r.Bytes()
	if err != nil {
		return nil, err
	}
	utf8 := r.NeedsUTF8()
	rm := &store.Message{Arrived: now, Size: int64(len(text)), Expires: now.Add(e.opts.Schedule.Expire),
		Sender: smtp.Sender{UTF8: utf8, Body: smtp.BodyEightBit},
		Origin: store.Origin{ReportOf: m.ID},
		Recipients: []store.Recipient{{Recipient: smtp.Recipient{Path: m.Sender.Path, Notify: smtp.NotifyNever},
			Destination: e.opts.Route(m.Sender.Path), Due: now}},
	}
	return &store.Report{Message: rm, Content: text}, nil
}

func (e *Engine) reportRecipient(m *store.Message, r *store.Recipient, kind reportKind, now time.Time) message.ReportRecipient {
	rr := message.ReportRecipient{Original: r.Original, Final: r.Path, Diagnostic: r.Last, LastAttempt: now}
	if r.Last != nil {
		rr.Status = r.Last.Enh
	}
	switch kind {
	case reportFailed:
		rr.Action = message.Failed
	case reportDelayed:
		rr.Action, rr.WillRetryUntil = message.Delayed, m.Expires
	default:
		rr.Action = message.Relayed
	}
	return rr
}

// returned reads what a report may bring back. Nil content is none.
func returned(content smtp.Content) ([]byte, error) {
	if content == nil {
		return nil, nil
	}
	var b bytes.Buffer
	w := &limitedWriter{w: &b, left: maxReturned}
	if _, err := content.WriteTo(w); err != nil && w.left > 0 {
		return nil, err
	}
	return b.Bytes(), nil
}

// limitedWriter takes so many octets and then fails.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	if l.left -= n; n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}
