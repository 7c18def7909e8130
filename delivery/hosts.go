package delivery

import (
	"net/netip"
	"sync"
	"time"
)

// hosts.go remembers addresses that could not be reached, for all destinations that lead there.
// Such an address is left alone for a while that doubles with each failure; then one attempt
// tries it, and the others do not wait for the outcome. An attempt for which nothing else is
// left has its answer at once: what happened there last.

// The pause after an address failed. It doubles with each failure in a row.
const (
	minHostPause = time.Minute
	maxHostPause = 30 * time.Minute
	// maxDead is how many addresses are remembered.
	maxDead = 50000
)

// hostKey is a way to an address: what does not answer one of our addresses may answer another.
type hostKey struct {
	to   netip.AddrPort
	from netip.Addr
}

// hosts is the memory. Its zero value is ready; it is safe for concurrent use.
type hosts struct {
	mu   sync.Mutex // guards what follows
	dead map[hostKey]*deadHost
}

type deadHost struct {
	pause  time.Duration
	until  time.Time
	trying bool
	err    error
}

// visit is an attempt to reach an address. It must be ended.
type visit struct {
	h     *hosts
	key   hostKey
	probe bool // the address was dead, and this is to find out whether it still is
}

// ask returns a visit to an address, or what happened there last if it is to be left alone until
// a time.
func (h *hosts) ask(k hostKey, now time.Time) (v *visit, until time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.dead[k]
	switch {
	case d == nil:
		return &visit{h: h, key: k}, until, nil
	case d.trying || now.Before(d.until):
		return nil, d.until, d.err
	}
	d.trying = true
	return &visit{h: h, key: k, probe: true}, until, nil
}

// reached ends a visit: somebody was there.
func (v *visit) reached() {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	delete(v.h.dead, v.key)
}

// leave ends a visit that says nothing of the address.
func (v *visit) leave() {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	if d := v.h.dead[v.key]; d != nil && v.probe {
		d.trying = false
	}
}

// failed ends a visit to an address where nobody was.
func (v *visit) failed(err error, now time.Time) {
	h := v.h
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.dead[v.key]
	if d != nil && !v.probe {
		return // of those who were under way together, each would double the pause
	}
	if d == nil {
		if h.dead == nil {
			h.dead = make(map[hostKey]*deadHost)
		}
		makeRoom(h.dead, maxDead, func(d *deadHost) bool { return !d.trying && now.After(d.until.Add(maxHostPause)) })
		d = new(deadHost)
		h.dead[v.key] = d
	}
	d.pause = min(max(2*d.pause, minHostPause), maxHostPause)
	d.until, d.trying, d.err = now.Add(d.pause), false, err
}

// makeRoom makes sure that one more fits into m, which has so many at most. A few are looked at, and
// those that are over go, or else any one: it costs the same however many there are.
func makeRoom[K comparable, V any](m map[K]V, most int, over func(V) bool) {
	const few = 32
	if len(m) < most {
		return
	}
	looked := 0
	for k, v := range m { // in no order
		if looked++; looked > few {
			break
		}
		if over(v) {
			delete(m, k)
		}
	}
	for k := range m {
		if len(m) < most {
			return
		}
		delete(m, k)
	}
}

// forgive lets every address be tried again, once; what it is then left alone for is as long as it
// would have been.
func (h *hosts) forgive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.dead {
		d.until = time.Time{}
	}
}

// count tells how many addresses are left alone now.
func (h *hosts) count(now time.Time) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.dead {
		if now.Before(d.until) {
			n++
		}
	}
	return n
}
