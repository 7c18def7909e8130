package delivery

import (
	"context"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// counting is a Handler that takes every message.
type counting struct{ begun, took int }

func (h *counting) Begin(context.Context, smtp.Sender, smtp.Forwarded) (smtp.Transaction, error) {
	h.begun++
	return &handled{h: h}, nil
}

type handled struct {
	h  *counting
	to int
}

func (c *handled) Rcpt(context.Context, smtp.Recipient) error { c.to++; return nil }
func (c *handled) Abort()                                     {}
func (c *handled) Data(_ context.Context, content smtp.Content) ([]*smtp.Reply, error) {
	c.h.took++
	var replies []*smtp.Reply
	for range c.to {
		replies = append(replies, smtp.Refuse(250, smtp.Enhanced{2, 0, 0}, "taken"))
	}
	return replies, nil
}

// TestHandler: mail for a backend within the program goes there, and such a backend takes all
// that a message may need, although it was never asked.
func TestHandler(t *testing.T) {
	h := &counting{}
	tr, err := New(Options{LocalName: "mx.test", Handlers: map[string]Handler{"handler:x": h}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tr.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := tr.Update(nil); err != nil {
		t.Fatal(err)
	}
	if o, known := tr.Offers("handler:x"); !known || !o.UTF8 || !o.EightBit || !o.Extensions.DSN || o.MaxSize != 0 {
		t.Errorf("offers %+v, known %v", o, known)
	}
	if _, err := tr.Begin(t.Context(), "handler:y", smtp.Sender{}); err == nil || !strings.Contains(err.Error(), "no backend") {
		t.Errorf("another: %v", err)
	}
	tx, err := tr.Begin(t.Context(), "handler:x", smtp.Sender{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Rcpt(t.Context(), smtp.Recipient{}); err != nil {
		t.Fatal(err)
	}
	if replies, err := tx.Data(t.Context(), nil); err != nil || len(replies) != 1 || h.took != 1 {
		t.Errorf("%v, %v, took %d", replies, err, h.took)
	}
}
