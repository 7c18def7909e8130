package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// handover.go: the transaction with a backend, and the time that a client may hold it.

// How long a client may keep a backend waiting for it. A backend has few connections, and
// a client that could hold one by being slow could hold them all. The time runs while we
// wait for the client, and for the filters, not for the backend.
const (
	// holdFor is all the time that a transaction has. What it takes longer for, it takes
	// without a backend: the envelope is repeated when the message is complete.
	holdFor = 5 * time.Second
	// holdMore is what one recipient gets beyond that: a batch that the client sends in one
	// go is asked for in one transaction.
	holdMore = 250 * time.Millisecond
)

// handover is the transaction with a backend that belongs to the session's. While it
// waits for the client a timer may give the backend back; mu guards against that.
type handover struct {
	mu      sync.Mutex
	tr      smtp.Transaction // nil: not begun, or given back
	backend string           // of tr
	sender  smtp.Sender      // as the backend has it
	rcpts   []smtp.Recipient // as the backend accepted them
	timer   *time.Timer      // gives the backend back
	since   time.Time        // when the client's time began to run; zero while it does not
	due     time.Time        // when it is over
	spent   time.Duration    // of the client's time, before since
}

// reset begins a new transaction, with all the time that one has.
func (h *handover) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	h.spent = 0
}

// abort gives the backend back, if there is one.
func (h *handover) abort() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

// expire is abort by the timer. It may come late, when the client's time does not run
// any more, or runs anew.
func (h *handover) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.since.IsZero() && !time.Now().Before(h.due) {
		h.drop()
	}
}

// drop is abort with h.mu held.
func (h *handover) drop() {
	h.stop()
	if h.tr != nil {
		h.tr.Abort()
		h.tr = nil
	}
	h.forget()
}

// take takes the backend's transaction out, to be ended by its new owner. h.mu is held.
func (h *handover) take() smtp.Transaction {
	h.stop()
	tr := h.tr
	h.tr = nil
	h.forget()
	return tr
}

// forget empties the list of recipients. The memory of a long one is not kept for the
// session.
func (h *handover) forget() {
	if cap(h.rcpts) > 16 {
		h.rcpts = nil
	}
	clear(h.rcpts)
	h.rcpts = h.rcpts[:0]
}

// start makes the client's time run, if there is a backend that waits. h.mu is held.
func (h *handover) start() {
	if h.tr == nil {
		return
	}
	left := max(holdFor-h.spent, holdMore)
	h.since = time.Now()
	h.due = h.since.Add(left)
	if h.timer == nil {
		h.timer = time.AfterFunc(left, h.expire)
	} else {
		h.timer.Reset(left)
	}
}

// stop ends the running of the client's time. h.mu is held.
func (h *handover) stop() {
	if h.since.IsZero() {
		return
	}
	h.timer.Stop()
	h.spent += time.Since(h.since)
	h.since = time.Time{}
}

// has tells whether the backend holds exactly this envelope. h.mu is held.
func (h *handover) has(sender smtp.Sender, rcpts []policy.Recipient) bool {
	if h.tr == nil || h.sender != sender || len(h.rcpts) != len(rcpts) {
		return false
	}
	for i := range rcpts {
		if h.rcpts[i] != rcpts[i].Recipient {
			return false
		}
	}
	return true
}

// offer begins a transaction with the backend if there is none, and adds a recipient. An
// error with h.tr left is the answer about this recipient; without, the backend is gone,
// and what it had accepted with it. h.mu is held.
func (h *handover) offer(ctx context.Context, relay Relay, backend string, sender smtp.Sender, client smtp.Forwarded, to smtp.Recipient) error {
	if h.backend != backend {
		h.drop()
	}
	h.stop()
	defer h.start()
	if h.tr == nil {
		tr, err := relay.Begin(ctx, backend, sender, client)
		if err != nil {
			return refusal(err)
		}
		h.tr, h.backend, h.sender = tr, backend, sender
	}
	err := h.tr.Rcpt(ctx, to)
	if err == nil {
		h.rcpts = append(h.rcpts, to)
		return nil
	}
	if _, ok := errors.AsType[*smtp.Reply](err); !ok {
		h.drop()
	}
	return refusal(err)
}

// refusal is what the client is told when the next hop says err. With some codes
// a server ends the connection behind them. They speak of the next hop's connection with
// us, and the client is not to lose its own for that.
func refusal(err error) error {
	r, ok := errors.AsType[*smtp.Reply](err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return smtp.Refuse(451, smtp.Enhanced{4, 4, 2}, "the next hop gave no proper answer, try again later").Because(err)
	case r.Code != 421 && r.Code != 521 && !r.Hangup:
		return err
	}
	c := r.Because(err)
	c.Hangup = false
	switch r.Code {
	case 421:
		c.Code = 451
	case 521:
		c.Code = 550
	}
	return c
}
