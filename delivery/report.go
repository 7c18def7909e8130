package delivery

import (
	"context"
	"io"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// report.go: what the sender is told (RFC 3461, RFC 3464). There is one report for all
// recipients of a message that share a fate in one attempt, and none about a report: its
// sender is the null path.

// events are the words of NOTIFY that ask for a report of what became of a recipient.
var events = map[message.Action]smtp.Notify{
	message.ActionFailed:  smtp.NotifyFailure,
	message.ActionDelayed: smtp.NotifyDelay,
	message.ActionRelayed: smtp.NotifySuccess,
}

// report makes the report about some recipients of a message, given by their places, or
// returns nil if the sender wants none. Content may be nil; remote, if it is not, tells the host that
// spoke of each.
func (e *Engine) report(m *store.Message, content smtp.Content, action message.Action, who []int, remote func(int) string, now time.Time) (*store.Report, error) {
	var list []message.ReportRecipient
	for _, i := range who {
		r := &m.Recipients[i]
		if !message.Wants(m.Sender.Path, r.Notify, events[action]) {
			continue
		}
		rr := message.ReportRecipient{Original: r.Original, Final: r.Path, Action: action, Diagnostic: r.Last, LastAttempt: now}
		if remote != nil {
			rr.RemoteMTA = remote(i)
		}
		if action == message.ActionDelayed {
			rr.WillRetryUntil = m.Expires
		}
		list = append(list, rr)
	}
	if len(list) == 0 {
		return nil, nil
	}
	rep := message.Report{Reporting: e.own, To: m.Sender.Path, UTF8: m.Sender.UTF8, RequireTLS: m.Sender.RequireTLS,
		EnvID: m.Sender.EnvID, LogID: string(m.ID), Arrived: m.Arrived, Now: now, Return: m.Sender.Return,
		Original: content, Recipients: list}
	from, text, err := rep.Message()
	if err != nil && content != nil {
		rep.Original = nil // what cannot be read cannot be returned, and the sender is to hear of it all the same
		from, text, err = rep.Message()
	}
	if err != nil {
		return nil, err
	}
	text = e.signed(text)
	to := store.Recipient{Recipient: smtp.Recipient{Path: m.Sender.Path, Notify: smtp.NotifyNever},
		Destination: e.opts.Route(m.Sender.Path), Due: now}
	return &store.Report{Content: text, Message: &store.Message{Arrived: now, Sender: from, Size: int64(len(text)),
		Expires: now.Add(e.opts.Schedule.Expire), Origin: store.Origin{ReportOf: m.ID}, Recipients: []store.Recipient{to}}}, nil
}

// signed returns a report with its signatures on top.
func (e *Engine) signed(text []byte) []byte {
	if e.opts.Sign == nil {
		return text
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTime)
	defer cancel()
	fields, err := e.opts.Sign(ctx, e.own, madeReport(text))
	if err != nil {
		e.opts.Log.Warn("a report is not signed", "err", err)
		return text
	}
	var head []byte
	for _, f := range fields {
		head = append(head, f.Raw()...)
	}
	return append(head, text...)
}

// signTime is how long a signature may take.
const signTime = 10 * time.Second

// madeReport is a report as content.
type madeReport []byte

// WriteTo and Size implement smtp.Content.
func (t madeReport) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(t)
	return int64(n), err
}

func (t madeReport) Size() int64 { return int64(len(t)) }
