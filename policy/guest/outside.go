package guest

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// outside.go: the calls that leave the session. What a guest asks for is checked here, and
// handed to a service; a look-up or a fetch may also run beside the guest, from submit to
// wait, at most until its hook ends.

// errnoOfService is what an error of a service is to a guest.
func errnoOfService(ctx context.Context, err error) abi.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrNotFound):
		return abi.ENOENT
	case errors.Is(err, ErrFull):
		return abi.ELIMIT
	case errors.Is(err, ErrRefused):
		return abi.EPERM
	case errors.Is(err, ErrBad):
		return abi.EINVAL
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), ctx.Err() != nil:
		return abi.ETIME
	}
	return abi.EUNAVAIL
}

// away is what a guest did outside at one hook.
type away struct {
	used bool // what follows may not be zero

	kv, dns, http, dsn int

	stop    context.CancelFunc // of flights; nil without any
	ctx     context.Context
	running sync.WaitGroup
	flights []*flight

	// What did not fit into the guest's buffer waits here for the same call with more room.
	keptFor string
	kept    []byte
}

// flight is a look-up or a fetch that runs beside the guest.
type flight struct {
	done   chan struct{}
	answer []byte // valid after done
	no     abi.Errno
	taken  bool
}

// endAway ends what still runs.
func (g *Env) endAway() {
	a := &g.away
	if !a.used {
		return
	}
	if a.stop != nil {
		a.stop()
		a.running.Wait()
	}
	g.away = away{}
}

// count counts a call against a limit per hook.
func count(n *int, limit int) bool {
	*n++
	return *n <= limit
}

// begins is what all calls that leave the session check first.
func (g *Env) begins(capability string) abi.Errno {
	switch {
	case !g.at(abi.InSession):
		return abi.EPHASE
	case !g.may(capability):
		return abi.EPERM
	}
	g.away.used = true
	return 0
}

// kvBegins is begins for values.
func (g *Env) kvBegins(key []byte, size int) abi.Errno {
	switch no := g.begins(abi.CapKV); {
	case no != 0:
		return no
	case len(key) == 0:
		return abi.EINVAL
	case len(key) > abi.MaxKVKey || size > abi.MaxKVValue:
		return abi.ELIMIT
	case g.opts.Services.KV == nil:
		return abi.EUNAVAIL
	case !count(&g.away.kv, cmp.Or(g.opts.Grants.KV.MaxPerHook, abi.MaxKV)) || !g.charge(int64(len(key)+size)):
		return abi.ELIMIT
	}
	return 0
}

// ttlOf reads a time to live; ok is false for a negative one.
func ttlOf(ms int64) (ttl time.Duration, ok bool) {
	const most = int64(10 * 365 * 24 * time.Hour / time.Millisecond)
	return time.Duration(min(ms, most)) * time.Millisecond, ms >= 0
}

// KvGet implements Host.
func (g *Env) KvGet(key, buf []byte) int32 {
	if no := g.kvBegins(key, 0); no != 0 {
		return int32(no)
	}
	var value []byte
	var no abi.Errno
	g.outside(func(ctx context.Context) {
		var err error
		value, err = g.opts.Services.KV.Get(ctx, string(key))
		no = errnoOfService(ctx, err)
	})
	if no != 0 {
		return int32(no)
	}
	return fill(buf, value)
}

// KvSet implements Host.
func (g *Env) KvSet(key, value []byte, ttlMs int64) int32 {
	no := g.kvBegins(key, len(value))
	ttl, ok := ttlOf(ttlMs)
	if no != 0 {
		return int32(no)
	}
	if !ok || len(value) == 0 {
		return int32(abi.EINVAL)
	}
	g.outside(func(ctx context.Context) {
		no = errnoOfService(ctx, g.opts.Services.KV.Set(ctx, string(key), slices.Clone(value), ttl))
	})
	return int32(no)
}

// KvIncr implements Host.
func (g *Env) KvIncr(key []byte, delta, ttlMs int64, buf []byte) int32 {
	no := g.kvBegins(key, 8)
	ttl, ok := ttlOf(ttlMs)
	if no != 0 {
		return int32(no)
	}
	if !ok {
		return int32(abi.EINVAL)
	}
	var sum int64
	g.outside(func(ctx context.Context) {
		var err error
		sum, err = g.opts.Services.KV.Add(ctx, string(key), delta, ttl)
		no = errnoOfService(ctx, err)
	})
	if no != 0 {
		return int32(no)
	}
	return fill(buf, binary.LittleEndian.AppendUint64(nil, uint64(sum)))
}

// KvCas implements Host.
func (g *Env) KvCas(key, old, value []byte, ttlMs int64) int32 {
	no := g.kvBegins(key, max(len(old), len(value)))
	ttl, ok := ttlOf(ttlMs)
	if no != 0 {
		return int32(no)
	}
	if !ok || len(value) == 0 {
		return int32(abi.EINVAL)
	}
	var was []byte // nil for none
	if len(old) > 0 {
		was = slices.Clone(old)
	}
	var swapped bool
	g.outside(func(ctx context.Context) {
		var err error
		swapped, err = g.opts.Services.KV.Swap(ctx, string(key), was, slices.Clone(value), ttl)
		no = errnoOfService(ctx, err)
	})
	if no == 0 && swapped {
		return 1
	}
	return int32(no)
}

// KvDel implements Host.
func (g *Env) KvDel(key []byte) int32 {
	no := g.kvBegins(key, 0)
	if no != 0 {
		return int32(no)
	}
	g.outside(func(ctx context.Context) {
		no = errnoOfService(ctx, g.opts.Services.KV.Delete(ctx, string(key)))
	})
	return int32(no)
}

// Secret implements Host.
func (g *Env) Secret(name, buf []byte) int32 {
	if !g.at(abi.Anytime) {
		return int32(abi.EPHASE)
	}
	if len(name) > abi.MaxKVKey || !slices.Contains(g.opts.Grants.Secrets, string(name)) {
		g.refuse(abi.CapSecret)
		return int32(abi.EPERM)
	}
	if g.opts.Services.Secrets == nil {
		return int32(abi.EUNAVAIL)
	}
	value, ok := g.opts.Services.Secrets.Secret(string(name))
	if !ok {
		return int32(abi.ENOENT)
	}
	return fill(buf, value)
}

// task is a look-up or a fetch that has been checked: it may run anywhere.
type task func(ctx context.Context) ([]byte, error)

// dnsTask checks a look-up.
func (g *Env) dnsTask(typ int32, name []byte) (task, abi.Errno) {
	if no := g.begins(abi.CapDNS); no != 0 {
		return nil, no
	}
	i := slices.IndexFunc(abi.DNSTypes(), func(t abi.DNSTypeInfo) bool { return int32(t.Type) == typ })
	grant, service := g.opts.Grants.DNS, g.opts.Services.DNS
	switch {
	case i < 0 || len(name) == 0 || len(name) > abi.MaxDNSName || !plain(name, ""):
		return nil, abi.EINVAL
	case len(grant.Types) > 0 && !slices.Contains(grant.Types, abi.DNSTypes()[i].Name):
		g.refuse(abi.CapDNS)
		return nil, abi.EPERM
	case service == nil:
		return nil, abi.EUNAVAIL
	case !count(&g.away.dns, cmp.Or(grant.MaxPerHook, abi.MaxDNS)):
		return nil, abi.ELIMIT
	}
	t, n := abi.DNSTypes()[i], string(name)
	return func(ctx context.Context) ([]byte, error) {
		answer, err := service.LookUp(ctx, uint16(t.Type), n)
		if err != nil {
			return nil, err
		}
		return appendDNS(nil, t.Type, answer), nil
	}, 0
}

// appendDNS writes an answer as package abi draws it.
func appendDNS(b []byte, typ abi.DNSType, a DNSAnswer) []byte {
	le := binary.LittleEndian
	flags := uint32(0)
	if a.Secure {
		flags |= abi.DNSSecure
	}
	b = le.AppendUint32(b, flags)
	b = le.AppendUint32(b, uint32(max(0, min(a.TTL/time.Second, 1<<31))))
	var data []byte
	for _, r := range a.Records {
		data = data[:0]
		switch typ {
		case abi.DNSA, abi.DNSAAAA:
			data = append(data, r.Addr.AsSlice()...)
		case abi.DNSTXT:
			data = append(data, r.Text...)
		case abi.DNSMX:
			data = append(le.AppendUint16(data, r.Priority), r.Host...)
		case abi.DNSSRV:
			data = append(le.AppendUint16(le.AppendUint16(le.AppendUint16(data, r.Priority), r.Weight), r.Port), r.Host...)
		default:
			data = append(data, r.Host...)
		}
		b = appendList(b, data)
	}
	return b
}

// listOf reads a list of at most most elements.
func listOf(b []byte, most int) (list [][]byte, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 || len(list) == most {
			return nil, false
		}
		n := binary.LittleEndian.Uint32(b)
		if b = b[4:]; uint64(n) > uint64(len(b)) {
			return nil, false
		}
		list, b = append(list, b[:n]), b[n:]
	}
	return list, true
}

// httpTask checks a fetch.
func (g *Env) httpTask(req []byte) (task, abi.Errno) {
	if no := g.begins(abi.CapHTTP); no != 0 {
		return nil, no
	}
	if len(req) > abi.MaxHTTPRequest {
		return nil, abi.ELIMIT
	}
	if !g.charge(int64(len(req))) {
		return nil, abi.ETIME
	}
	grant, service := g.opts.Grants.HTTP, g.opts.Services.HTTP
	r, ok := readRequest(req)
	if !ok {
		return nil, abi.EINVAL
	}
	switch {
	case !grant.permits(r):
		g.refuse(abi.CapHTTP)
		return nil, abi.EPERM
	case service == nil:
		return nil, abi.EUNAVAIL
	case !count(&g.away.http, cmp.Or(grant.MaxPerHook, abi.MaxHTTP)):
		return nil, abi.ELIMIT
	}
	timeout := grant.Timeout
	if timeout <= 0 {
		timeout = DefaultHTTPTimeout
	}
	return func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		resp, err := service.Do(ctx, r)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
		return appendResponse(resp), nil
	}, 0
}

// appendResponse writes a response as package abi draws it.
func appendResponse(r HTTPResponse) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, len(r.Body)+1024), uint32(r.Status))
	b = appendList(b, r.Body)
	for _, f := range r.Header {
		b = appendList(appendList(b, f.Name), f.Value)
	}
	return b
}

// readRequest reads what package abi draws, and refuses what could not be said in one
// request: a name or a value that ends its line, a host that is not a host.
func readRequest(b []byte) (r HTTPRequest, ok bool) {
	list, ok := listOf(b, 3+2*abi.MaxHTTPFields)
	if !ok || len(list) < 3 || len(list)%2 == 0 {
		return r, false
	}
	r = HTTPRequest{Method: string(list[0]), URL: string(list[1]), Body: slices.Clone(list[2])}
	for i := 3; i < len(list); i += 2 {
		f := HTTPField{string(list[i]), string(list[i+1])}
		if !isToken(f.Name) || hopField(f.Name) || !plain(list[i+1], "\t") {
			return r, false
		}
		r.Header = append(r.Header, f)
	}
	return r, isToken(r.Method)
}

// isToken is RFC 9110, Section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// hopField tells whether a field is for the host to write: it says where a message goes or
// ends (RFC 9112), or speaks of the connection (RFC 9110, Section 7.6.1).
func hopField(name string) bool {
	switch strings.ToLower(name) {
	case "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "http2-settings":
		return true
	}
	return len(name) >= 6 && strings.EqualFold(name[:6], "proxy-")
}

// permits tells whether a request is one that the operator allows.
func (h *HTTPGrant) permits(r HTTPRequest) bool {
	methods := h.Methods
	if len(methods) == 0 {
		methods = []string{"GET", "HEAD", "POST"}
	}
	scheme, host, port, ok := SplitURL(r.URL)
	return ok && slices.Contains(methods, r.Method) &&
		slices.ContainsFunc(h.Hosts, func(p HostPattern) bool { return p.Matches(scheme, host, port) })
}

// SplitURL returns whom a URL speaks to: http or https, a name in lower case or an address
// without brackets, and a port. ok is false for what is not such a URL, in ASCII, or has a
// user.
func SplitURL(s string) (scheme, host string, port uint16, ok bool) {
	if len(s) > abi.MaxHTTPURL || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return "", "", 0, false
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Opaque != "" {
		return "", "", 0, false
	}
	host, port = strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), 443
	if u.Scheme == "http" {
		port = 80
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", "", 0, false
		}
		port = uint16(n)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return u.Scheme, addr.Unmap().String(), port, addr.Zone() == ""
	}
	return u.Scheme, host, port, isHostName(host)
}

// isHostName takes letters, digits, hyphens and underscores in labels, the last of which
// does not begin with a digit: what looks like an address in another spelling is no name.
func isHostName(host string) bool {
	label := ""
	for label = range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(host) <= 253 && (label[0] < '0' || label[0] > '9')
}

// askNow runs a task while the guest waits. What does not fit is kept for the same call again.
func (g *Env) askNow(op string, request []byte, buf []byte, check func() (task, abi.Errno)) int32 {
	a := &g.away
	if a.kept != nil && g.at(abi.InSession) && g.charge(int64(len(request))) && a.keptFor == op+string(request) {
		answer := a.kept
		if len(answer) <= len(buf) {
			a.kept = nil
		}
		return g.hand(buf, answer)
	}
	run, no := check()
	if no != 0 {
		return int32(no)
	}
	var answer []byte
	g.outside(func(ctx context.Context) {
		var err error
		answer, err = run(ctx)
		no = errnoOfService(ctx, err)
	})
	if no != 0 {
		return g.refused(no)
	}
	if len(answer) > len(buf) {
		a.keptFor, a.kept = op+string(request), answer
	}
	return g.hand(buf, answer)
}

// hand is fill for an answer, which may be large, and read again and again.
func (g *Env) hand(buf, answer []byte) int32 {
	if !g.charge(int64(min(len(buf), len(answer)))) {
		return int32(abi.ETIME)
	}
	return fill(buf, answer)
}

// refused returns the error of a task. A host whose addresses are not granted shows only when
// it is connected to.
func (g *Env) refused(no abi.Errno) int32 {
	if no == abi.EPERM {
		g.refuse(abi.CapHTTP)
	}
	return int32(no)
}

// Dns implements Host.
func (g *Env) Dns(typ int32, name, buf []byte) int32 {
	return g.askNow("dns "+strconv.Itoa(int(typ))+" ", name[:min(len(name), abi.MaxDNSName+1)], buf, func() (task, abi.Errno) { return g.dnsTask(typ, name) })
}

// Http implements Host.
func (g *Env) Http(req, buf []byte) int32 {
	return g.askNow("http ", req[:min(len(req), abi.MaxHTTPRequest+1)], buf, func() (task, abi.Errno) { return g.httpTask(req) })
}

// Dsn implements Host.
func (g *Env) Dsn(p []byte) int32 {
	if no := g.begins(abi.CapDSN); no != 0 {
		return int32(no)
	}
	if len(p) > abi.MaxDSN {
		return int32(abi.ELIMIT)
	}
	if !g.charge(int64(len(p))) {
		return int32(abi.ETIME)
	}
	list, ok := listOf(p, 3)
	switch {
	case !ok || len(list) != 3 || !plain(list[1], "") || !plain(list[2], "\t\r\n"):
		return int32(abi.EINVAL)
	case g.opts.Services.DSN == nil:
		return int32(abi.EUNAVAIL)
	case !count(&g.away.dsn, abi.MaxDSNs):
		return int32(abi.ELIMIT)
	}
	n := Notification{string(list[0]), string(list[1]), string(list[2])}
	var no abi.Errno
	g.outside(func(ctx context.Context) { no = errnoOfService(ctx, g.opts.Services.DSN.Send(ctx, n)) })
	return int32(no)
}

// Submit implements Host.
func (g *Env) Submit(kind int32, p []byte) int32 {
	if !g.at(abi.InSession) {
		return int32(abi.EPHASE)
	}
	var run task
	no := abi.EINVAL
	switch {
	case abi.Op(kind) == abi.OpHTTP:
		run, no = g.httpTask(p)
	case abi.Op(kind) == abi.OpDNS && len(p) >= 4:
		run, no = g.dnsTask(int32(binary.LittleEndian.Uint32(p)), p[4:])
	}
	if no != 0 {
		return int32(no)
	}
	a := &g.away
	if a.stop == nil {
		a.ctx, a.stop = context.WithCancel(g.ctx)
	}
	f := &flight{done: make(chan struct{})}
	a.flights = append(a.flights, f) // the limits of look-ups and fetches bound them
	a.running.Add(1)
	go func(ctx context.Context) {
		defer a.running.Done()
		defer close(f.done)
		var err error
		f.answer, err = run(ctx)
		f.no = errnoOfService(ctx, err)
	}(a.ctx)
	return int32(len(a.flights))
}

// Wait implements Host.
func (g *Env) Wait(h, timeoutMs int32, buf []byte) int32 {
	a := &g.away
	switch {
	case !g.at(abi.InSession):
		return int32(abi.EPHASE)
	case timeoutMs < 0:
		return int32(abi.EINVAL)
	case h < 1 || int(h) > len(a.flights) || a.flights[h-1].taken:
		return int32(abi.ENOENT)
	}
	f := a.flights[h-1]
	if !f.ready(0, g) && (timeoutMs == 0 || !f.ready(time.Duration(timeoutMs)*time.Millisecond, g)) {
		return int32(abi.ETIME)
	}
	if f.no != 0 {
		f.taken = true
		return g.refused(f.no)
	}
	answer := f.answer
	if len(answer) <= len(buf) {
		f.taken, f.answer = true, nil
	}
	return g.hand(buf, answer)
}

// ready waits for a flight, not at all with a timeout of 0.
func (f *flight) ready(timeout time.Duration, g *Env) (ok bool) {
	if timeout == 0 {
		select {
		case <-f.done:
			return true
		default:
			return false
		}
	}
	g.outside(func(ctx context.Context) {
		t := time.NewTimer(timeout)
		defer t.Stop()
		select {
		case <-f.done:
			ok = true
		case <-t.C:
		case <-ctx.Done():
		}
	})
	return ok
}
