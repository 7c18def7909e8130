package filtertest

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy/guest"
)

// world.go: what a filter finds outside of its session, made up for a test.

// World is what there is outside. The zero World is empty: nothing is kept, no name exists,
// and no server answers. It may be used by several sessions at once; a test reads its fields
// when they have ended.
type World struct {
	// KV are the values that filters keep, by key. A time to live is not counted.
	KV map[string]string
	// DNS are records by type and name, as in "TXT example.org".
	DNS map[string][]guest.DNSRecord
	// HTTP answers requests. Nil means that no server is there.
	HTTP func(ctx context.Context, r guest.HTTPRequest) (guest.HTTPResponse, error)
	// Secrets are the values of secrets. All of them are granted, unless Options.Grants says
	// something else.
	Secrets map[string]string
	// Sent are the notifications that were sent.
	Sent []guest.Notification

	mu sync.Mutex // guards KV and Sent
}

// Services returns the world as an Env wants it. The nil World has none.
func (w *World) Services() guest.Services {
	if w == nil {
		return guest.Services{}
	}
	return guest.Services{KV: worldKV{w}, DNS: worldDNS{w}, HTTP: worldHTTP{w}, DSN: worldDSN{w}, Secrets: worldSecrets{w}}
}

// grants is what a filter may do there if a test says nothing of it.
func (w *World) grants() guest.Grants {
	g := guest.Everything()
	if w != nil {
		for name := range w.Secrets {
			g.Secrets = append(g.Secrets, name)
		}
	}
	return g
}

type worldKV struct{ w *World }

// Get implements guest.KV.
func (k worldKV) Get(_ context.Context, key string) ([]byte, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	v, ok := k.w.KV[key]
	if !ok {
		return nil, guest.ErrNotFound
	}
	return []byte(v), nil
}

// set is called with mu held.
func (k worldKV) set(key, value string) {
	if k.w.KV == nil {
		k.w.KV = make(map[string]string)
	}
	k.w.KV[key] = value
}

// Set implements guest.KV.
func (k worldKV) Set(_ context.Context, key string, value []byte, _ time.Duration) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	k.set(key, string(value))
	return nil
}

// Add implements guest.KV.
func (k worldKV) Add(_ context.Context, key string, delta int64, _ time.Duration) (int64, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	n := int64(0)
	if v, ok := k.w.KV[key]; ok {
		var err error
		if n, err = strconv.ParseInt(v, 10, 64); err != nil {
			return 0, guest.ErrBad
		}
	}
	k.set(key, strconv.FormatInt(n+delta, 10))
	return n + delta, nil
}

// Swap implements guest.KV.
func (k worldKV) Swap(_ context.Context, key string, old, value []byte, _ time.Duration) (bool, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	if v, ok := k.w.KV[key]; ok != (old != nil) || v != string(old) {
		return false, nil
	}
	k.set(key, string(value))
	return true, nil
}

// Delete implements guest.KV.
func (k worldKV) Delete(_ context.Context, key string) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	delete(k.w.KV, key)
	return nil
}

type worldDNS struct{ w *World }

// LookUp implements guest.DNS.
func (d worldDNS) LookUp(_ context.Context, typ uint16, name string) (guest.DNSAnswer, error) {
	for _, t := range abi.DNSTypes() {
		if uint16(t.Type) != typ {
			continue
		}
		if records := d.w.DNS[t.Name+" "+strings.TrimSuffix(strings.ToLower(name), ".")]; len(records) > 0 {
			return guest.DNSAnswer{TTL: time.Minute, Records: records}, nil
		}
	}
	return guest.DNSAnswer{}, guest.ErrNotFound
}

type worldHTTP struct{ w *World }

// Do implements guest.HTTP.
func (h worldHTTP) Do(ctx context.Context, r guest.HTTPRequest) (guest.HTTPResponse, error) {
	if h.w.HTTP == nil {
		return guest.HTTPResponse{}, context.DeadlineExceeded
	}
	return h.w.HTTP(ctx, r)
}

type worldDSN struct{ w *World }

// Send implements guest.DSN.
func (d worldDSN) Send(_ context.Context, n guest.Notification) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.Sent = append(d.w.Sent, n)
	return nil
}

type worldSecrets struct{ w *World }

// Secret implements guest.Secrets.
func (s worldSecrets) Secret(name string) (string, bool) {
	v, ok := s.w.Secrets[name]
	return v, ok
}
