package tlsrpt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/penstock/penstock/resolver"
)

// send.go: the reports of a day that is over. One node sends them all, shard after shard, each
// at its own time. What is to be sent is what lies in the store: the rows of a shard are
// deleted when nothing of them is left to be done, and a mark for each domain says how far its
// report is, so that after a crash, or on another node, nothing is forgotten and no report is
// sent twice. (A crash between the sending and the mark does it, with the same identifier.)

const (
	sendEvery = time.Minute
	// A destination that takes no report is tried for a day (RFC 8460, Section 5.5), and a day
	// that nobody could tell of for so long is not told any more.
	tryFor  = 24 * time.Hour
	tellFor = 72 * time.Hour
	// markFor is how long it is remembered that a report was sent: rows that come later, of a
	// node that was cut off, must not make another one.
	markFor    = 5 * 24 * time.Hour
	firstRetry = 5 * time.Minute
	lastRetry  = 2 * time.Hour
)

// send sends what is due, until ctx ends.
func (r *Reporter) send(ctx context.Context) {
	every := time.NewTicker(sendEvery)
	defer every.Stop()
	for {
		if err := r.sendDue(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, errNotLeader) {
			r.opts.Log.Warn("reports about TLS are not sent now, trying again", "err", err)
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// lead tells whether we are still to send.
func (r *Reporter) lead(ctx context.Context) error {
	if time.Since(r.led) < leadAgain {
		return nil
	}
	ok, err := r.opts.Lead(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("tlsrpt: who sends reports: %w", err)
	case !ok:
		return errNotLeader
	}
	r.led = time.Now()
	return nil
}

// sendDue sends what is due now.
func (r *Reporter) sendDue(ctx context.Context) error {
	if err := r.lead(ctx); err != nil {
		return err
	}
	all, err := days(ctx, r.opts.Files, rowsFolder)
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := r.sendDay(ctx, d); err != nil {
			return err
		}
	}
	return r.forget(ctx)
}

// sendDay sends what is due of a day.
func (r *Reporter) sendDay(ctx context.Context, d day) error {
	now := time.Now()
	switch {
	case now.Before(d.end().Add(2 * settle)):
		return nil
	case now.After(d.end().Add(tellFor)):
		r.opts.Log.Warn("reports about TLS are too late to be sent, and given up", "day", string(d))
		return r.opts.Files.Delete(ctx, path.Join(rowsFolder, string(d)))
	}
	names, err := list(ctx, r.opts.Files, path.Join(rowsFolder, string(d)))
	if err != nil {
		return err
	}
	for _, name := range names {
		shard, err := strconv.Atoi(name)
		if err != nil || now.Before(r.due(d, shard)) || now.Before(r.later[shardFolder(d, shard)]) {
			continue
		}
		if err := r.sendShard(ctx, d, shard); err != nil {
			return err
		}
	}
	return nil
}

// due is when the reports of a shard are sent: senders all over the world end their day at the
// same time, and should not all report at once (RFC 8460, Section 4.1).
func (r *Reporter) due(d day, shard int) time.Time {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %d", r.sender.submitter, d, shard)
	at := d.end().Add(3 * settle)
	if r.opts.Spread > 0 {
		at = at.Add(time.Duration(h.Sum64() % uint64(r.opts.Spread)))
	}
	return at
}

// sendShard sends the reports of a shard, several at a time, and deletes its rows if nothing is
// left to be done.
func (r *Reporter) sendShard(ctx context.Context, d day, shard int) error {
	all, err := r.readShard(ctx, d, shard)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var later time.Time
	domains := make(chan string)
	var workers sync.WaitGroup
	for range min(atOnce, len(all)) {
		workers.Go(func() {
			for domain := range domains {
				again, err := r.sendDomain(ctx, d, domain, all[domain])
				if err != nil {
					cancel(err)
				}
				mu.Lock()
				if !again.IsZero() && (later.IsZero() || again.Before(later)) {
					later = again
				}
				mu.Unlock()
			}
		})
	}
	for _, domain := range slices.Sorted(maps.Keys(all)) {
		if err := r.lead(ctx); err != nil { // each may take minutes
			cancel(err)
		}
		select {
		case domains <- domain:
		case <-ctx.Done():
		}
	}
	close(domains)
	workers.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	folder := shardFolder(d, shard)
	if !later.IsZero() {
		r.later[folder] = later
		return nil
	}
	delete(r.later, folder)
	return r.opts.Files.Delete(ctx, folder)
}

// atOnce is how many domains are told at a time, and domainTime how long telling one may take.
// It is less than what Options.Lead promises: who leads no more has ended by then.
const (
	atOnce     = 8
	domainTime = 2 * time.Minute
	leadAgain  = time.Minute
)

// mark is how far the report to a domain is.
type mark struct {
	First time.Time // when it was tried first
	Next  time.Time `json:",omitzero"`
	Tries int
	Done  bool `json:",omitempty"`
	// Left are the URIs that have not taken it; Took is how many have. Found tells that the
	// record was found, so that Left counts.
	Left  []string `json:",omitempty"`
	Took  int      `json:",omitempty"`
	Found bool     `json:",omitempty"`
}

func markName(d day, domain string) string { return path.Join(sentFolder, string(d), domain) }

func (r *Reporter) readMark(ctx context.Context, d day, domain string) (mark, error) {
	m := mark{First: time.Now().UTC()}
	data, err := r.opts.Files.Read(ctx, markName(d, domain))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	} else if err != nil {
		return m, fmt.Errorf("tlsrpt: report to %s: %w", domain, err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		// It is there, so the report may have been sent.
		r.opts.Log.Error("a mark that a report was sent cannot be read, and counts as one", "domain", domain, "err", err)
		m.Done = true
	}
	return m, nil
}

func (r *Reporter) writeMark(ctx context.Context, d day, domain string, m mark) error {
	data, err := json.Marshal(m)
	if err == nil {
		err = r.opts.Files.Write(ctx, markName(d, domain), data)
	}
	if err != nil {
		return fmt.Errorf("tlsrpt: report to %s: %w", domain, err)
	}
	return nil
}

// sendDomain sends the report to a domain, as far as it can be sent now, and returns when to
// try again; zero is never. An error is one of the store.
func (r *Reporter) sendDomain(ctx context.Context, d day, domain string, sum *domainSum) (again time.Time, err error) {
	m, err := r.readMark(ctx, d, domain)
	if err != nil || m.Done {
		return time.Time{}, err
	}
	if time.Now().Before(m.Next) {
		return m.Next, nil
	}
	limited, cancel := context.WithTimeout(ctx, domainTime)
	defer cancel()
	if !m.Found {
		left, err := r.destinations(limited, domain)
		if err == nil && len(left) == 0 {
			return time.Time{}, nil // nobody wants to know
		}
		m.Found, m.Left = err == nil, left
	}
	if err := r.deliver(ctx, limited, d, domain, sum, &m); err != nil {
		return time.Time{}, err
	}
	if ctx.Err() != nil {
		return time.Time{}, ctx.Err() // what failed now may have failed for that
	}
	m.Tries++
	switch {
	case m.Found && len(m.Left) == 0:
		m.Done = true
	case time.Since(m.First) >= tryFor:
		m.Done = true
		if m.Took == 0 {
			r.Stats.Failed.Add(1)
			r.opts.Log.Warn("a report about TLS could not be sent in a day, and is given up", "domain", domain)
		}
	default:
		m.Next = time.Now().UTC().Add(min(firstRetry<<min(m.Tries-1, 10), lastRetry))
	}
	if m.Done {
		m.Left, m.Next = nil, time.Time{}
	}
	return m.Next, r.writeMark(ctx, d, domain, m)
}

// destinations are the URIs that a domain wants its reports at. None is that it wants none; the
// error, that this cannot be known now.
func (r *Reporter) destinations(ctx context.Context, domain string) ([]string, error) {
	found, err := r.opts.DNS.LookupTXT(ctx, "_smtp._tls."+domain)
	switch {
	case errors.Is(err, resolver.ErrNotFound), errors.Is(err, resolver.ErrBadName):
		return nil, nil
	case err != nil:
		return nil, err
	}
	all, err := ParseRecord(found.Records)
	if errors.Is(err, ErrBadRecord) {
		r.opts.Log.Info("a domain's record about reports cannot be used, so it gets none", "domain", domain, "err", err)
	}
	var uris []string
	for _, dest := range all {
		if uri := dest.String(); !slices.Contains(uris, uri) {
			uris = append(uris, uri)
		}
	}
	return uris, nil
}

// deliver sends a report to the destinations that are left. The mark is written after each one
// that took it; limited is for the sending alone.
func (r *Reporter) deliver(ctx, limited context.Context, d day, domain string, sum *domainSum, m *mark) error {
	if len(m.Left) == 0 {
		return nil
	}
	compressed, err := r.sender.report(d, domain, sum).compress()
	if err != nil {
		return err
	}
	for _, uri := range slices.Clone(m.Left) {
		if err := r.deliverTo(limited, uri, d, domain, compressed); err != nil {
			if ctx.Err() == nil {
				r.opts.Log.Info("a report about TLS was not taken, trying again", "domain", domain, "to", uri, "err", err)
			}
			continue
		}
		r.Stats.Sent.Add(1)
		r.opts.Log.Info("a report about TLS was sent", "domain", domain, "to", uri, "day", string(d))
		m.Left = slices.DeleteFunc(m.Left, func(s string) bool { return s == uri })
		m.Took++
		if err := r.writeMark(ctx, d, domain, *m); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reporter) deliverTo(ctx context.Context, uri string, d day, domain string, compressed []byte) error {
	dest, err := parseDestination(uri)
	if err != nil {
		return err
	}
	if dest.URL != "" {
		return r.web.post(ctx, dest.URL, compressed)
	}
	mail, err := r.sender.mail(r.opts.From, dest.Address, d, domain, compressed, time.Now())
	if err != nil {
		return err
	}
	return r.opts.Mail(ctx, mail)
}

// forget deletes marks of days that nobody comes back to.
func (r *Reporter) forget(ctx context.Context) error {
	all, err := days(ctx, r.opts.Files, sentFolder)
	if err != nil {
		return err
	}
	for _, d := range all {
		if time.Now().After(d.end().Add(markFor)) {
			if err := r.opts.Files.Delete(ctx, path.Join(sentFolder, string(d))); err != nil {
				return err
			}
		}
	}
	for folder, at := range r.later { // of days that are told by another node, or given up
		if time.Since(at) > tellFor {
			delete(r.later, folder)
		}
	}
	return nil
}
