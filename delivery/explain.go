package delivery

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// explain.go answers why a message waits, in words. What is asked for is all in the store, in
// the transport and in the engine; put side by side it says which of the reasons it is that
// counts: its time has not come, its destination is not known, is down, or has its hands full,
// or somebody is at it right now.

// Explanation is why a message waits, as of one moment. What it has of the store, of the
// backends and of the workers was not read in one step.
type Explanation struct {
	Message *store.Message
	// Now is when this was true.
	Now time.Time
	// Recipients has a reason for each recipient of the message, in their order.
	Recipients []Reason
	// Destinations are those where recipients of the message wait, by name.
	Destinations []DestinationState
	// Next is when the next try is due; zero if there is none. It may have passed.
	Next time.Time
}

// ReasonKind is a reason for programs.
type ReasonKind string

// The reasons, the first two for recipients of which nothing more will become.
const (
	ReasonDelivered ReasonKind = "delivered"
	ReasonFailed    ReasonKind = "failed"
	ReasonHeld      ReasonKind = "held"      // until a person releases it
	ReasonUnderWay  ReasonKind = "under_way" // it is being delivered
	ReasonScheduled ReasonKind = "scheduled" // its time has not come
	ReasonUnknown   ReasonKind = "unknown"   // there is no such destination
	ReasonDown      ReasonKind = "down"      // it is due, and its destination is down
	ReasonBusy      ReasonKind = "busy"      // it is due, and all workers have others
	ReasonDue       ReasonKind = "due"       // it is due, and about to be delivered
	ReasonStopping  ReasonKind = "stopping"  // it is due, and this node is shutting down
)

// Reason is why a recipient is where it is.
type Reason struct {
	Kind ReasonKind
	// Text says it in a sentence, without a full stop. It has what other servers said.
	Text string
}

// DestinationState is what is known of a destination.
type DestinationState struct {
	Name store.Destination
	// Known tells that there is a way to it.
	Known bool
	// Down tells that nobody answers there, Err why, and Retry when that is looked at again.
	Down  bool
	Err   string
	Retry time.Time
	// Site names the hosts that serve it, where it shares them with other destinations; empty if
	// that is not known at the moment. Rest is until when they are left alone, because they want
	// their mail slowly; zero if they are not.
	Site string
	Rest time.Time
	// Workers of this node deliver there now, of at most MaxWorkers; where there is a Site, there
	// at all destinations. AllWorkers are those of this node in all, of at most MaxAllWorkers.
	Workers, MaxWorkers       int
	AllWorkers, MaxAllWorkers int
	// Waiting counts the recipients there that nobody delivers now, and Due is when the next
	// of them is due; zero if there is none.
	Waiting int
	Due     time.Time
	// Ahead is how many messages are due there and come before this one. It is counted while
	// this one is due and all workers have others; AheadAtLeast tells that there may be more.
	Ahead        int
	AheadAtLeast bool

	stopped bool
	// looking tells that its hosts are being looked up, or are to be. unproven is how many workers
	// there are at sites that have not shown that they take mail, if they may not be more and its
	// site is one of these.
	looking  bool
	unproven int
}

// Why explains why a message waits. It returns store.ErrNotFound if it does not.
func (e *Engine) Why(ctx context.Context, id store.ID) (Explanation, error) {
	waits, err := e.waits(ctx)
	if err != nil {
		return Explanation{}, err
	}
	m, err := e.opts.Queue.Message(ctx, id)
	if err != nil {
		return Explanation{}, err
	}
	x := Explanation{Message: m, Now: e.now()}
	states := map[store.Destination]*DestinationState{}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		if !pending(r) {
			continue
		}
		if states[r.Destination] == nil {
			d := e.stateOf(r.Destination, waits[r.Destination])
			states[r.Destination] = &d
		}
		if r.State == store.Waiting && (x.Next.IsZero() || r.Due.Before(x.Next)) {
			x.Next = r.Due
		}
	}
	for i := range m.Recipients {
		x.Recipients = append(x.Recipients, e.reason(ctx, &x, i, states[m.Recipients[i].Destination]))
	}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		x.Destinations = append(x.Destinations, *states[name])
	}
	return x, nil
}

// waits returns what waits at each destination.
func (e *Engine) waits(ctx context.Context) (map[store.Destination]store.Waits, error) {
	waits := map[store.Destination]store.Waits{}
	err := e.opts.Queue.Destinations(ctx, func(w store.Waits) bool {
		waits[w.Destination] = w
		return true
	})
	return waits, err
}

// stateOf puts together what is known of a destination.
func (e *Engine) stateOf(name store.Destination, w store.Waits) DestinationState {
	d := DestinationState{Name: name, Waiting: w.Waiting, Due: w.Due, MaxWorkers: e.opts.DestinationWorkers, MaxAllWorkers: e.opts.Workers}
	if n := e.opts.Transport.connections(strings.TrimPrefix(string(name), backendPrefix)); n > 0 {
		d.MaxWorkers = n
	}
	e.mu.Lock()
	d.AllWorkers, d.stopped = e.workers, e.closing
	if at := e.dests[name]; at != nil {
		d.Workers = at.workers
		d.looking = at.site == nil
		d.lookSite(e, at.site)
	}
	e.mu.Unlock()
	d.Known = e.out.reaches(name) || e.opts.Transport.handles(strings.TrimPrefix(string(name), backendPrefix))
	backend, ok := strings.CutPrefix(string(name), backendPrefix)
	if !ok {
		return d
	}
	for _, s := range e.opts.Transport.Stats() {
		if s.Name == backend {
			d.Known = true
			d.look(s.Endpoints)
		}
	}
	return d
}

// lookSite takes over what is known of the site, which may be that of other destinations, too.
// e.mu is held.
func (d *DestinationState) lookSite(e *Engine, s *site) {
	if s == nil || s.backend != "" {
		return
	}
	d.Site, d.Workers, d.MaxWorkers = s.key, s.workers, e.limit(s)
	if e.rests(s) {
		d.Rest = s.rest
	}
	if !s.proven && e.unproven >= e.mostUnproven() {
		d.unproven = e.unproven
	}
}

// look takes over what is known of the endpoints: a backend is down if all of them are.
func (d *DestinationState) look(endpoints []EndpointStats) {
	for _, e := range endpoints {
		if e.Up {
			d.Down, d.Err, d.Retry = false, "", time.Time{}
			return
		}
		if !d.Down || e.Retry.Before(d.Retry) {
			d.Retry = e.Retry
		}
		if d.Err == "" && e.Err != nil {
			d.Err = oneLine(e.Err.Error())
		}
		d.Down = true
	}
}

// oneLine makes one line of a text that a stranger may have written.
func oneLine(s string) string { return strings.Map(visible, strings.ReplaceAll(s, "\n", "; ")) }

// reason says why a recipient is where it is. d is nil if nothing more will become of it.
func (e *Engine) reason(ctx context.Context, x *Explanation, i int, d *DestinationState) Reason {
	m, r := x.Message, &x.Message.Recipients[i]
	switch r.State {
	case store.Delivered:
		return Reason{ReasonDelivered, "was delivered" + lastWords(m, i, x.Now)}
	case store.Failed:
		return Reason{ReasonFailed, "was given up" + lastWords(m, i, x.Now)}
	case store.Held:
		text := "is held until somebody releases it"
		if m.Origin.Reason != "" {
			text += ": " + oneLine(m.Origin.Reason)
		}
		return Reason{ReasonHeld, text}
	}
	if since, ok := e.under.since(m.ID, i); ok {
		return Reason{ReasonUnderWay, "is being delivered, since " + timeSince(since, x.Now)}
	}
	if r.Due.After(x.Now) {
		return Reason{ReasonScheduled, "waits until " + timeTo(r.Due, x.Now) + d.trouble() + lastWords(m, i, x.Now)}
	}
	return e.reasonDue(ctx, x, r, d, lastWords(m, i, x.Now))
}

// trouble is what will keep a recipient from being delivered when its time has come.
func (d *DestinationState) trouble() string {
	switch {
	case !d.Known:
		return ", and " + noWay(d.Name)
	case d.Down:
		return ", and " + string(d.Name) + " is down" + inBrackets(d.Err)
	}
	return ""
}

// place is where the deliveries are that count with those to a destination.
func (d *DestinationState) place() string {
	if d.Site == "" {
		return string(d.Name)
	}
	return string(d.Name) + " and others at " + oneLine(d.Site)
}

// noWay says why nothing can be delivered to a destination.
func noWay(name store.Destination) string {
	if backend, ok := strings.CutPrefix(string(name), backendPrefix); ok {
		return fmt.Sprintf("the configuration has no backend %s", oneLine(backend))
	}
	return fmt.Sprintf("there is no way to %s", oneLine(string(name)))
}

func inBrackets(err string) string {
	if err == "" {
		return ""
	}
	return " (" + err + ")"
}

// reasonDue says why a recipient is not delivered whose time has come.
func (e *Engine) reasonDue(ctx context.Context, x *Explanation, r *store.Recipient, d *DestinationState, last string) Reason {
	due := "has been due since " + timeSince(r.Due, x.Now)
	switch {
	case d.Due.IsZero() || r.Due.Before(d.Due):
		// Of those that nobody has, none is due so early: somebody has it.
		return Reason{ReasonUnderWay, "is being delivered, or about to be" + last}
	case !d.Known:
		return Reason{ReasonUnknown, due + ", but " + noWay(d.Name) + last}
	case d.Down:
		retry := ""
		if d.Retry.After(x.Now) {
			retry = ", which is looked at again " + timeTo(d.Retry, x.Now)
		}
		return Reason{ReasonDown, due + ", but " + string(d.Name) + " is down" + inBrackets(d.Err) + retry + last}
	case d.stopped:
		return Reason{ReasonStopping, due + ", but this node is shutting down" + last}
	case d.Rest.After(x.Now):
		return Reason{ReasonBusy, fmt.Sprintf("%s, and the hosts of %s are to get mail slowly: the next %s%s", due, d.Name, timeTo(d.Rest, x.Now), last)}
	case d.Workers >= d.MaxWorkers:
		e.countAhead(ctx, x.Message, r, d, x.Now)
		return Reason{ReasonBusy, fmt.Sprintf("%s, and %d of %d deliveries to %s are under way; %s%s", due, d.Workers, d.MaxWorkers, d.place(), d.ahead(), last)}
	case d.AllWorkers >= d.MaxAllWorkers:
		e.countAhead(ctx, x.Message, r, d, x.Now)
		return Reason{ReasonBusy, fmt.Sprintf("%s, and %d of %d deliveries are under way in all; %s%s", due, d.AllWorkers, d.MaxAllWorkers, d.ahead(), last)}
	case d.unproven > 0 && d.Workers == 0:
		return Reason{ReasonBusy, fmt.Sprintf("%s, and %d of %d deliveries to hosts that have not taken mail yet, or take long, are under way%s", due, d.unproven, max(1, d.MaxAllWorkers/2), last)}
	case d.looking:
		return Reason{ReasonDue, due + ", and its hosts are being looked up" + last}
	}
	return Reason{ReasonDue, due + ", and is about to be delivered" + last}
}

// maxAhead and aheadTime bound the count of messages that come before one.
const (
	maxAhead  = 10000
	aheadTime = 2 * time.Second
)

// countAhead counts the messages that Queue.Lease would give out at d before m. It is done
// once for each destination.
func (e *Engine) countAhead(ctx context.Context, m *store.Message, r *store.Recipient, d *DestinationState, now time.Time) {
	if d.Ahead > 0 || d.AheadAtLeast {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, aheadTime)
	defer cancel()
	seen := 0
	err := e.opts.Queue.List(ctx, store.Filter{States: []store.State{store.Waiting}, Destination: d.Name}, "", func(o *store.Message) bool {
		if o.ID != m.ID && comesBefore(o, m, r, d.Name, now) {
			d.Ahead++
		}
		seen++
		return seen < maxAhead && ctx.Err() == nil
	})
	d.AheadAtLeast = err != nil || ctx.Err() != nil || seen == maxAhead
}

// comesBefore tells whether o has a recipient at d that is due and comes before r of m.
func comesBefore(o, m *store.Message, r *store.Recipient, d store.Destination, now time.Time) bool {
	return slices.ContainsFunc(o.Recipients, func(q store.Recipient) bool {
		return q.Destination == d && q.State == store.Waiting && !q.Due.After(now) &&
			cmp.Or(cmp.Compare(m.Priority, o.Priority), cmp.Compare(q.Tries, r.Tries), q.Due.Compare(r.Due)) < 0
	})
}

// ahead says how many messages come first.
func (d *DestinationState) ahead() string {
	least := ""
	if d.AheadAtLeast {
		least = "at least "
	}
	if d.Ahead == 1 {
		return least + "1 message comes before it"
	}
	return fmt.Sprintf("%s%d messages come before it", least, d.Ahead)
}

// lastWords is what the next hop said to a recipient last, as the end of a sentence.
func lastWords(m *store.Message, i int, now time.Time) string {
	r := &m.Recipients[i]
	for _, a := range slices.Backward(m.Attempts) {
		if slices.Contains(a.Recipients, i) {
			return ": " + spoke(a.Host, cmp.Or(r.Last, a.Reply)) + " " + lineOf(cmp.Or(r.Last, a.Reply)) + " at the " + ordinal(r.Tries) + " try, " + timeSince(a.Time, now)
		}
	}
	if r.Last != nil {
		return ": the last answer was " + lineOf(r.Last)
	}
	if r.Tries == 0 && r.State == store.Waiting {
		return "; it has not been tried yet"
	}
	return ""
}

// spoke says who spoke.
func spoke(host string, r *smtp.Reply) string {
	switch {
	case host != "":
		return oneLine(host) + " said"
	case r != nil && r.Enh[1] >= 3 && r.Enh[1] != 4:
		return "the outcome was" // what was not for a host to say, as of policies
	}
	return "nobody could be reached,"
}

func lineOf(r *smtp.Reply) string {
	if r == nil {
		return "nothing"
	}
	return r.Line()
}

// ordinal returns the word for the n-th.
func ordinal(n int) string {
	words := [...]string{"first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"}
	if n >= 1 && n <= len(words) {
		return words[n-1]
	}
	suffix := "th"
	if n/10%10 != 1 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprint(n) + suffix
}

// timeTo is a time to come, and how far it is; timeSince is one that has passed.
func timeTo(t, now time.Time) string { return timeOfDay(t, now) + " (in " + spanOf(t.Sub(now)) + ")" }
func timeSince(t, now time.Time) string {
	return timeOfDay(t, now) + " (" + spanOf(now.Sub(t)) + " ago)"
}

// timeOfDay is the time of day, with the date if it is not today's. Who reads it may be in
// another zone than we, so it is UTC.
func timeOfDay(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04 UTC")
	}
	return t.Format("2006-01-02 15:04 UTC")
}

// spanOf is a duration in its two largest units.
func spanOf(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	days, hours, minutes := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%d d %d h", days, hours)
	case hours > 0:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%d min", minutes)
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}

// underWay is what this node delivers right now. Its zero value is ready.
type underWay struct {
	mu sync.Mutex
	at map[underWayKey]time.Time // since when; guarded by mu
}

type underWayKey struct {
	id        store.ID
	recipient int
}

// begin notes that a lease is being delivered until end is called.
func (u *underWay) begin(l *store.Lease, now time.Time) (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at == nil {
		u.at = make(map[underWayKey]time.Time)
	}
	for _, i := range l.Recipients {
		u.at[underWayKey{l.Message.ID, i}] = now
	}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, i := range l.Recipients {
			delete(u.at, underWayKey{l.Message.ID, i})
		}
	}
}

// since tells since when a recipient is being delivered.
func (u *underWay) since(id store.ID, recipient int) (time.Time, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	since, ok := u.at[underWayKey{id, recipient}]
	return since, ok
}
