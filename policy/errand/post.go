package errand

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"mime/quotedprintable"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy/guest"
)

// post.go: notifications. The filter gives recipient, subject and text; all else of the
// message is ours, so that it says whose it is and nothing answers it.

// Mailer takes a message with the null sender to one recipient. It returns an error wrapping
// guest.ErrNotFound if nobody is responsible for the recipient, and nil once the message is
// safe.
type Mailer interface {
	Mail(ctx context.Context, filter string, to smtp.Path, content []byte) error
}

// post is a guest.DSN.
type post struct {
	filter, host string
	mail         Mailer
	per          time.Duration

	mu   sync.Mutex
	sent []time.Time // the last so many, as a ring; guarded by mu
	next int
}

func newPost(o Options) *post {
	g := o.Grants.DSN
	return &post{filter: o.Name, host: o.Hostname, mail: o.Mail, per: g.Per, sent: make([]time.Time, max(g.Count, 0))}
}

// may counts a notification; false if there were too many lately.
func (p *post) may(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 || !p.sent[p.next].IsZero() && now.Sub(p.sent[p.next]) < p.per {
		return false
	}
	p.sent[p.next] = now
	p.next = (p.next + 1) % len(p.sent)
	return true
}

// Send implements guest.DSN. What fails counts too.
func (p *post) Send(ctx context.Context, n guest.Notification) error {
	to, err := smtp.ParseAddress(n.To)
	if err != nil || to.Domain.IsZero() || to.NeedsUTF8() {
		return guest.ErrBad
	}
	now := time.Now()
	content, err := p.write(n, to, now)
	if err != nil {
		return fmt.Errorf("%w: %w", guest.ErrBad, err)
	}
	if !p.may(now) {
		return guest.ErrFull
	}
	return p.mail.Mail(ctx, p.filter, to, content)
}

// write makes the message (RFC 5322; RFC 3834, Section 5 for Auto-Submitted).
func (p *post) write(n guest.Notification, to smtp.Path, now time.Time) ([]byte, error) {
	var b bytes.Buffer
	for _, f := range [][2]string{
		{"From", "Penstock filter " + p.filter + " <postmaster@" + p.host + ">"},
		{"To", "<" + to.String() + ">"},
		{"Subject", n.Subject},
		{"Date", now.Format(time.RFC1123Z)},
		{"Message-ID", "<" + rand.Text() + "@" + p.host + ">"},
		{"Auto-Submitted", "auto-generated"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "quoted-printable"},
	} {
		field, err := message.NewField(f[0], f[1])
		if err != nil {
			return nil, err
		}
		b.Write(field.Raw())
	}
	b.WriteString("\r\n")
	text := strings.NewReplacer("\r\n", "\r\n", "\n", "\r\n", "\r", "\r\n").Replace(n.Text)
	if !strings.HasSuffix(text, "\r\n") {
		text += "\r\n"
	}
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}
