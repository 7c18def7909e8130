package policy

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// breaker.go: a filter that fails again and again is not asked for a while.
//
// What a filter does depends on what the client sends, so a failure may be the client's
// work. Nobody may be able to switch a filter off for all others with it. So the breaker
// looks at who sees the filter fail: it opens when failures are many among the calls and
// come to clients of several networks, and the networks with the most failures count for
// no more than the others make likely.
//
// Each stage has a switch of its own. A filter that fails at every message and has nothing
// to say at the eight stages before would else fail at one call in nine and never be found
// broken, and a probe at one of those would find it well.
//
//	        many failures                      a probe's time has come: one call
//	closed ───────────────▶ open ──────────────────────────────────────▶ asked
//	   ▲                      ▲            it fails: wait twice as long    │
//	   │                      └────────────────────────────────────────────┤
//	   └───────────────────────────────────────────────────────────────────┘ it does not

// The limits of a Breaker.
const (
	breakerWindow = time.Minute // failures are looked at for so long
	breakerCalls  = 50          // as many calls must have been made in it
	breakerShare  = 5           // more than one call in so many must have failed
	breakerWorst  = 4           // networks whose failures do not prove anything by themselves
	breakerOthers = 5           // as many failures must have come to clients of others
	firstProbe    = time.Second // the first call that is let through after so long
	lastProbe     = time.Minute // the longest wait for the next
	// probeTime is how long a probe keeps others from being made: more than the time that a
	// call may take, so that it counts only for a probe whose end nobody told.
	probeTime = 2 * time.Minute
)

// ErrBroken is the error of a [Step] whose filter was not asked, for its Breaker is open.
var ErrBroken = errors.New("policy: filter is broken and was not asked")

// Breaker keeps a filter that fails again and again from being asked. It is made once for
// each filter and put into all its links. It opens at a stage when, of at least 50 calls
// there within a minute, more than a fifth have failed, with failures in sessions of
// clients from at least 5 networks (/24 of IPv4, /48 of IPv6; sessions without an address
// are one). The 4 networks that have the most of them are not enough, however many they
// have: at least 5 failures must have come to others, and those of the 4 count for at most
// four times as many. While it is open, OnBroken of the Link answers in place of the
// filter. After 1 s, and then 2, 4 … 60 s, one call is let through; the first that does not
// fail closes it.
//
// A call that ended because its session did counts as no failure. A Breaker is safe for
// concurrent use, and what it remembers is bounded. The nil *Breaker never opens.
type Breaker struct {
	start   time.Time // what times are counted from
	changed func(BreakerChange)
	stages  [stageLimit]breakerStage
}

// stageLimit is above the numbers of all stages.
const stageLimit = 32

// breakerStage is the switch of one stage. On the way of a call that does not fail there
// are one load and one addition.
type breakerStage struct {
	calls atomic.Uint64
	retry atomic.Int64 // closed: 0; open: when the next probe may be made, since start

	mu      sync.Mutex // guards what follows; taken by failures and probes alone
	window  window
	backoff time.Duration
	opened  uint64
	since   time.Duration
	why     BreakerChange // how it was opened
	_       [64]byte      // the next stage's counter is in another cache line
}

// BreakerChange is what happened to a Breaker at a stage.
type BreakerChange struct {
	Stage Stage
	// Open tells whether the filter is kept from being asked now. It is also sent, with
	// Probes above zero, when a probe has failed.
	Open bool
	// Calls, Failures and Networks are what opened it: calls of the last minute, those of
	// them that failed, and the networks that saw it.
	Calls, Failures, Networks int
	// Probes is how many calls were let through since it was opened.
	Probes int
	// Retry is the wait until the next.
	Retry time.Duration
	// Err is the failure that opened it, or that of the probe.
	Err error
}

// NewBreaker returns a Breaker that is closed. changed, if not nil, is called whenever it
// opens, a probe fails, or it closes, in the order in which that happens; it must not call
// the Breaker.
func NewBreaker(changed func(BreakerChange)) *Breaker {
	b := &Breaker{start: time.Now(), changed: changed}
	if changed == nil {
		b.changed = func(BreakerChange) {}
	}
	return b
}

// BrokenStage is a stage at which a Breaker is open.
type BrokenStage struct {
	Stage Stage
	// Since is when it was opened, Retry when the next call is let through.
	Since, Retry time.Time
	// Why is how it was opened, and Probes of it the calls that were let through since.
	Why BreakerChange
}

// Broken returns the stages at which the Breaker is open now, in their order.
func (b *Breaker) Broken() []BrokenStage {
	if b == nil {
		return nil
	}
	var list []BrokenStage
	for i := range b.stages {
		s := &b.stages[i]
		s.mu.Lock()
		if retry := s.retry.Load(); retry != 0 {
			list = append(list, BrokenStage{Stage(i), b.start.Add(s.since), b.start.Add(time.Duration(retry)), s.why})
		}
		s.mu.Unlock()
	}
	return list
}

// Opened returns how often the Breaker was opened, at any stage.
func (b *Breaker) Opened() (n uint64) {
	if b == nil {
		return 0
	}
	for i := range b.stages {
		s := &b.stages[i]
		s.mu.Lock()
		n += s.opened
		s.mu.Unlock()
	}
	return n
}

// permit is the Breaker's word about a call.
type permit uint8

const (
	granted permit = iota
	probing        // let through while the Breaker is open: its outcome must be told
	denied
)

// ask asks for a permit.
func (b *Breaker) ask(stage Stage, now time.Time) permit {
	if b == nil {
		return granted
	}
	s := &b.stages[stage]
	retry := s.retry.Load()
	if retry == 0 {
		s.calls.Add(1)
		return granted
	}
	at := int64(now.Sub(b.start))
	if at < retry || !s.retry.CompareAndSwap(retry, at+int64(probeTime)) {
		return denied
	}
	return probing
}

// passed tells that a call that was a probe did not fail.
func (b *Breaker) passed(stage Stage, now time.Time) {
	s := &b.stages[stage]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retry.Load() == 0 {
		return // another probe has been faster
	}
	change := s.why
	change.Open, change.Retry, change.Err = false, 0, nil
	change.Probes++
	s.why, s.backoff = BreakerChange{}, 0
	s.window = window{at: now.Sub(b.start), calls: s.calls.Load()}
	s.retry.Store(0)
	b.changed(change)
}

// failed tells that a call failed, in a session of a client at addr.
func (b *Breaker) failed(stage Stage, addr netip.Addr, now time.Time, p permit, err error) {
	if b == nil {
		return
	}
	s := &b.stages[stage]
	s.mu.Lock()
	defer s.mu.Unlock()
	at := max(now.Sub(b.start), 1)
	open := s.retry.Load() != 0
	switch {
	case open && p == probing:
		s.backoff = min(2*s.backoff, lastProbe)
		s.why.Probes++
	case open:
		return // it was asked before
	default:
		s.window.advance(at, s.calls.Load())
		s.window.add(networkOf(addr))
		calls, failures, networks, broken := s.window.judge()
		if !broken {
			return
		}
		s.why = BreakerChange{Stage: stage, Open: true, Calls: calls, Failures: failures, Networks: networks}
		s.backoff, s.since = firstProbe, at
		s.opened++
	}
	s.retry.Store(int64(at + s.backoff))
	s.why.Retry, s.why.Err = s.backoff, err
	b.changed(s.why)
}

// abandoned tells that a probe ended without an outcome: the next call is one.
func (b *Breaker) abandoned(stage Stage, now time.Time) {
	s := &b.stages[stage]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retry.Load() != 0 {
		s.retry.Store(int64(max(now.Sub(b.start), 1)))
	}
}

// networkOf returns the network of a client. Who has one address easily has all of its
// network; the sizes are those that rates are counted by.
func networkOf(a netip.Addr) netip.Addr {
	a = a.Unmap()
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits) // the zero Addr has no prefix, and is a network of its own
	return p.Addr()
}

// The window moves on in slots.
const (
	windowSlots = 6
	slotTime    = breakerWindow / windowSlots
)

// maxFailing is how many networks with failures are told apart. Where there are more, a new
// one takes the place of the one that has the fewest, with what that had: so the sum stays
// right, and a network with many failures is never lost among those with few.
const maxFailing = 64

// window is what happened at a stage in the last minute. Calls are not counted as they are
// made: what their number has grown by since the failure before is spread over the time
// between the two.
type window struct {
	at       time.Duration // of the failure before
	calls    uint64        // at that time, since ever
	perSlot  [windowSlots]float64
	networks []failing
}

// failing is a network with failures.
type failing struct {
	network netip.Addr
	perSlot [windowSlots]uint32
	sum     uint32 // of perSlot
}

// advance moves the window on to the time at, when calls is the number of calls.
func (w *window) advance(at time.Duration, calls uint64) {
	old, now := w.at/slotTime, at/slotTime
	for slot := max(old+1, now-windowSlots+1); slot <= now; slot++ {
		w.empty(int(slot % windowSlots))
	}
	grown := float64(calls - w.calls)
	if now <= old {
		w.perSlot[old%windowSlots] += grown
	} else {
		for slot := max(old, now-windowSlots+1); slot <= now; slot++ {
			begin, end := max(slot*slotTime, w.at), min((slot+1)*slotTime, at)
			w.perSlot[slot%windowSlots] += grown * float64(end-begin) / float64(at-w.at)
		}
	}
	w.at, w.calls = max(at, w.at), calls
}

// empty forgets a slot.
func (w *window) empty(slot int) {
	w.perSlot[slot] = 0
	kept := w.networks[:0]
	for _, f := range w.networks {
		f.sum -= f.perSlot[slot]
		f.perSlot[slot] = 0
		if f.sum > 0 {
			kept = append(kept, f)
		}
	}
	w.networks = kept
}

// add counts a failure at the time of the last advance.
func (w *window) add(network netip.Addr) {
	i := slices.IndexFunc(w.networks, func(f failing) bool { return f.network == network })
	switch {
	case i >= 0:
	case len(w.networks) < maxFailing:
		i = len(w.networks)
		w.networks = append(w.networks, failing{network: network})
	default:
		least := 0
		for j, f := range w.networks {
			if f.sum < w.networks[least].sum {
				least = j
			}
		}
		i = least
		w.networks[i].network = network
	}
	f := &w.networks[i]
	f.perSlot[w.at/slotTime%windowSlots]++
	f.sum++
}

// judge tells whether the filter is broken.
//
// To ask for five networks alone would not keep one client from opening the breaker: it can
// make as many failures as it likes and wait until chance has given four others one each.
// So what the worst four networks have must be borne out by others, and their surplus is
// left out, of the failures and of the calls. Where many networks see the same, there is
// none.
func (w *window) judge() (calls, failures, networks int, broken bool) {
	sum := 0.0
	for _, n := range w.perSlot {
		sum += n
	}
	calls = int(math.Round(sum))
	var worst [breakerWorst]int // the largest first
	for _, f := range w.networks {
		n := int(f.sum)
		failures += n
		for i := range worst {
			if n > worst[i] {
				worst[i], n = n, worst[i]
			}
		}
	}
	most := 0
	for _, n := range worst {
		most += n
	}
	others := failures - most
	surplus := max(most-breakerWorst*others, 0)
	broken = calls >= breakerCalls && others >= breakerOthers && breakerShare*(failures-surplus) > calls-surplus
	return calls, failures, len(w.networks), broken
}
