package tlsrpt

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// inbox.go keeps the reports that we get.

// InboxOptions are the settings of an Inbox.
type InboxOptions struct {
	// Files is where reports are kept. Required.
	Files Files
	// Keep is how long. Default 90 days.
	Keep time.Duration
	// Daily is how many are taken in a day, on each node, and DailySize how many octets they may
	// take in Files: anybody may send them. Defaults 1000 and 32 MiB; a usual report takes some
	// kilobytes. More are told to come again later.
	Daily     int
	DailySize int64
	// Log gets a line for each report. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined.
func (o InboxOptions) Validate() error {
	var errs []error
	if o.Files == nil {
		errs = append(errs, errors.New("files are required"))
	}
	if o.Keep < 0 || o.Daily < 0 || o.DailySize < 0 {
		errs = append(errs, errors.New("time to keep, daily number and daily size must not be negative"))
	}
	return errors.Join(errs...)
}

// Inbox takes reports and shows them. It is safe for concurrent use.
type Inbox struct {
	opts InboxOptions
	// Stats are counted since NewInbox.
	Stats InboxStats

	turn chan struct{} // how many are read at a time: each may take some megabytes

	mu    sync.Mutex
	today day // guarded by mu, as is what follows
	count int
	size  int64 // of those that were taken
}

// InboxStats are counters, each safe to be read at any time.
type InboxStats struct {
	Taken   atomic.Int64 // messages with a report
	Refused atomic.Int64 // messages that were not taken, for good or for now
}

// NewInbox returns an Inbox. Its error joins all problems of the options.
func NewInbox(o InboxOptions) (*Inbox, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("tlsrpt: inbox: %w", err)
	}
	o.Keep = cmp.Or(o.Keep, 90*24*time.Hour)
	o.Daily = cmp.Or(o.Daily, 1000)
	o.DailySize = cmp.Or(o.DailySize, 32<<20)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	return &Inbox{opts: o, turn: make(chan struct{}, 2)}, nil
}

// Received is a report that we got.
type Received struct {
	// ID is its name here.
	ID string
	// Time is when it came, Sender the reverse-path, and Client the address that it came from,
	// as a text. Who it is from is what Sender and Report say, and proves nothing.
	Time           time.Time
	Sender, Client string
	Report         Report
}

// maxStored is the largest report that is kept, in octets.
const maxStored = 1 << 20

// Take reads the report in a message and returns once it is safe. The error is a *smtp.Reply: a
// message without a report is refused for good, everything else is temporary. A report that is
// there already, as its sender has tried again, is not stored twice.
func (b *Inbox) Take(ctx context.Context, content smtp.Content, from smtp.Path, client string) error {
	err := b.take(ctx, content, from, client)
	if err != nil {
		b.Stats.Refused.Add(1)
	} else {
		b.Stats.Taken.Add(1)
	}
	return err
}

func (b *Inbox) take(ctx context.Context, content smtp.Content, from smtp.Path, client string) error {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return smtp.Refuse(451, smtp.Enhanced{4, 3, 2}, "too many reports at a time, try again later").Because(ctx.Err())
	}
	if content.Size() > MaxMessage {
		return smtp.Refuse(552, smtp.Enhanced{5, 3, 4}, "too large for a report about TLS")
	}
	var buf bytes.Buffer
	if _, err := content.WriteTo(&buf); err != nil {
		return unkept(err)
	}
	rep, err := ReadMessage(buf.Bytes())
	if err != nil {
		return smtp.Refuse(550, smtp.Enhanced{5, 6, 0}, "this address takes reports about TLS alone (RFC 8460), and there is none that can be read").Because(err)
	}
	got := Received{Time: time.Now().UTC(), Sender: clip(from.String(), maxDetail), Client: clip(client, maxText), Report: rep}
	return b.keep(ctx, got)
}

func unkept(err error) error {
	return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "the report cannot be kept now, try again later").Because(err)
}

func (b *Inbox) keep(ctx context.Context, got Received) error {
	report, err := json.Marshal(got.Report)
	if err != nil {
		return unkept(err)
	}
	digest := sha256.Sum256(report)
	d := dayOf(got.Time)
	got.ID = string(d) + "-" + hex.EncodeToString(digest[:8])
	name := fileOf(got.ID)
	switch _, err := b.opts.Files.Read(ctx, name); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return unkept(err)
	}
	data, err := json.Marshal(got)
	if err != nil {
		return unkept(err)
	}
	if len(data) > maxStored {
		return smtp.Refuse(552, smtp.Enhanced{5, 3, 4}, "too large for a report about TLS")
	}
	if !b.room(d, len(data)) {
		return smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "too many reports about TLS today, try again later")
	}
	if err := b.opts.Files.Write(ctx, name, data); err != nil {
		return unkept(err)
	}
	ok, failed := got.Report.Sessions()
	b.opts.Log.Info("got a report about TLS", "report", got.ID, "from", got.Sender, "organization", got.Report.Organization, "successful", ok, "failed", failed)
	return nil
}

// room counts a report of so many octets, and tells whether it may be kept.
func (b *Inbox) room(d day, size int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.today != d {
		b.today, b.count, b.size = d, 0, 0
	}
	if b.count >= b.opts.Daily || b.size+int64(size) > b.opts.DailySize {
		return false
	}
	b.count++
	b.size += int64(size)
	return true
}

// fileOf is the name of the file of a report; empty if there can be none of that ID.
func fileOf(id string) string {
	if len(id) != len(dayForm)+17 || id[len(dayForm)] != '-' || day(id[:len(dayForm)]).begin().IsZero() {
		return ""
	}
	if _, err := hex.DecodeString(id[len(dayForm)+1:]); err != nil {
		return ""
	}
	return path.Join(gotFolder, id[:len(dayForm)], id[len(dayForm)+1:])
}

// ErrNoReport: there is no report of that ID.
var ErrNoReport = errors.New("tlsrpt: no such report")

// Show returns a report, or ErrNoReport.
func (b *Inbox) Show(ctx context.Context, id string) (Received, error) {
	name := fileOf(id)
	if name == "" {
		return Received{}, ErrNoReport
	}
	data, err := b.opts.Files.Read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return Received{}, ErrNoReport
	} else if err != nil {
		return Received{}, fmt.Errorf("tlsrpt: report %s: %w", id, err)
	}
	var got Received
	if err := json.Unmarshal(data, &got); err != nil {
		return Received{}, fmt.Errorf("tlsrpt: report %s: %w", id, err)
	}
	return got, nil
}

// List calls yield with the reports that came, the latest days first, in no order within a day,
// from behind after on, until it returns false. What cannot be read is logged and left out.
func (b *Inbox) List(ctx context.Context, after string, yield func(Received) bool) error {
	all, err := days(ctx, b.opts.Files, gotFolder)
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(all) {
		if after != "" && string(d) > after {
			continue // IDs begin with their day
		}
		names, err := list(ctx, b.opts.Files, path.Join(gotFolder, string(d)))
		if err != nil {
			return err
		}
		for _, name := range names {
			id := string(d) + "-" + name
			if strings.HasPrefix(after, string(d)) && id <= after {
				continue
			}
			got, err := b.Show(ctx, id)
			if errors.Is(err, ErrNoReport) {
				continue
			} else if err != nil {
				if ctx.Err() != nil {
					return err
				}
				b.opts.Log.Error("a report about TLS cannot be read", "report", id, "err", err)
				continue
			}
			if !yield(got) {
				return nil
			}
		}
	}
	return nil
}

// Run forgets old reports until ctx ends. Several nodes may do it.
func (b *Inbox) Run(ctx context.Context) {
	every := time.NewTicker(time.Hour)
	defer every.Stop()
	for {
		if err := b.forget(ctx); err != nil && ctx.Err() == nil {
			b.opts.Log.Warn("old reports about TLS could not be forgotten, trying again", "err", err)
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Inbox) forget(ctx context.Context) error {
	all, err := days(ctx, b.opts.Files, gotFolder)
	if err != nil {
		return err
	}
	for _, d := range all {
		if time.Now().After(d.end().Add(b.opts.Keep)) {
			if err := b.opts.Files.Delete(ctx, path.Join(gotFolder, string(d))); err != nil {
				return err
			}
		}
	}
	return nil
}
