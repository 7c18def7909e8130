package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// outside.go: what a filter may ask the gateway for beyond the session. Each takes a grant of
// the operator's, named in the method's comment; without it the error is abi.EPERM, and a
// filter may go on without. Put what yours asks for into filter.json beside its sources.

// KV are values that the filter keeps beyond the session. Filters of one name share them.
type KV struct{ host host }

// KV returns the values that the filter keeps. It takes the grant kv.
func (e Event) KV() KV { return KV{e.call.host} }

// Get returns a value; ok is false if there is none.
func (k KV) Get(key string) (value []byte, ok bool, err error) {
	var n int32
	value = grow(func(b []byte) int32 { n = k.host.KvGet([]byte(key), b); return n })
	if abi.Errno(n) == abi.ENOENT {
		return nil, false, nil
	}
	if err := check("get a value", n); err != nil {
		return nil, false, err
	}
	return value, true, nil
}

// Set keeps a value, which must not be empty, for ttl milliseconds; 0 is for ever. The error
// is abi.ELIMIT beyond the quota.
func (k KV) Set(key string, value []byte, ttl int64) error {
	return check("set a value", k.host.KvSet([]byte(key), value, ttl))
}

// Add adds to a number, which begins at 0 and is kept for ttl milliseconds from there on, and
// returns the sum. No other session comes in between.
func (k KV) Add(key string, delta, ttl int64) (int64, error) {
	var b [8]byte
	if err := check("add to a value", k.host.KvIncr([]byte(key), delta, ttl, b[:])); err != nil {
		return 0, err
	}
	return int64(u64(b[:])), nil
}

// Swap is Set if the value is old at that moment, and tells whether it was. An old one that
// is empty means that there is none.
func (k KV) Swap(key string, old, value []byte, ttl int64) (bool, error) {
	n := k.host.KvCas([]byte(key), old, value, ttl)
	return n == 1, check("swap a value", n)
}

// Delete forgets a value.
func (k KV) Delete(key string) error { return check("delete a value", k.host.KvDel([]byte(key))) }

// Secret returns a secret that the operator gives to the filter. It takes the grant secret.
func (e Event) Secret(name string) (string, error) { return secret(e.call.host, name) }

// Secret is [Event.Secret] while the configuration is read.
func (c Config) Secret(name string) (string, error) { return secret(c.host, name) }

func secret(h host, name string) (string, error) {
	var n int32
	b := grow(func(b []byte) int32 { n = h.Secret([]byte(name), b); return n })
	return string(b), check("read a secret", n)
}

// Notify sends a notification with the null sender. It takes the grant dsn.
func (e Event) Notify(to, subject, text string) error {
	return check("send a notification", e.call.host.Dsn(elements(nil, to, subject, text)))
}

// elements appends elements of a list as the ABI has it.
func elements(b []byte, of ...string) []byte {
	for _, s := range of {
		b = append(appendU32(b, uint32(len(s))), s...)
	}
	return b
}

func appendU32(b []byte, n uint32) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

// next takes an element off a list.
func next(b []byte) (element, rest []byte, ok bool) {
	if len(b) < 4 || uint64(u32(b)) > uint64(len(b)-4) {
		return nil, nil, false
	}
	n := 4 + int(u32(b))
	return b[4:n], b[n:], true
}

// DNS is the answer of a look-up.
type DNS struct {
	// Secure tells that the answer was validated with DNSSEC.
	Secure bool
	// Seconds is how long it holds.
	Seconds int64
	// Records are what was found, one at least.
	Records []Record
}

// Record is a record of the DNS. What is set depends on its type.
type Record struct {
	IP                     IP     // A, AAAA
	Text                   string // TXT
	Host                   string // MX, PTR, CNAME, NS, SRV
	Priority, Weight, Port uint16 // MX has the first, SRV all
}

// LookUp looks records up. [NotFound] tells of its error that there are none; other
// errors, that it is not known. It takes the grant dns.
func (e Event) LookUp(typ abi.DNSType, name string) (DNS, error) {
	return readDNS(typ, func(b []byte) int32 { return e.call.host.Dns(int32(typ), []byte(name), b) })
}

// LookUpTXT returns the texts of a name.
func (e Event) LookUpTXT(name string) ([]string, error) {
	answer, err := e.LookUp(abi.DNSTXT, name)
	var texts []string
	for _, r := range answer.Records {
		texts = append(texts, r.Text)
	}
	return texts, err
}

// LookUpIP returns the addresses of a name, those of IPv4 first. One family is enough.
func (e Event) LookUpIP(name string) ([]IP, error) {
	v4 := e.StartLookUp(abi.DNSA, name)
	v6 := e.StartLookUp(abi.DNSAAAA, name)
	a, err := v4.Wait(waitLong)
	aaaa, err6 := v6.Wait(waitLong)
	var ips []IP
	for _, r := range append(a.Records, aaaa.Records...) {
		ips = append(ips, r.IP)
	}
	switch {
	case len(ips) > 0:
		return ips, nil
	case NotFound(err):
		return nil, err6
	}
	return nil, err
}

// NotFound tells whether an error says that there is no such thing, which is an answer.
func NotFound(err error) bool {
	h, ok := err.(*HostError)
	return ok && h.Errno == abi.ENOENT
}

// waitLong is longer than any hook.
const waitLong = 10 * 60 * 1000

// LookUpStarted is a look-up that runs beside the filter.
type LookUpStarted struct {
	typ    abi.DNSType
	flight flight
}

// flight is what runs in the gateway: a number, or the error of starting it.
type flight struct {
	host host
	n    int32
}

func (f flight) wait(timeout int64, b []byte) int32 {
	if f.n < 0 {
		return f.n
	}
	return f.host.Wait(f.n, int32(min(timeout, waitLong)), b)
}

// StartLookUp begins a look-up and returns at once. What is not waited for ends when the
// handler returns.
func (e Event) StartLookUp(typ abi.DNSType, name string) LookUpStarted {
	return LookUpStarted{typ, flight{e.call.host, e.call.host.Submit(int32(abi.OpDNS), append(appendU32(nil, uint32(typ)), name...))}}
}

// Wait waits for the answer, for timeout milliseconds at most: the error is abi.ETIME if it is
// not there by then, and it may be waited for again. It is there to be read once.
func (l LookUpStarted) Wait(timeout int64) (DNS, error) {
	return readDNS(l.typ, func(b []byte) int32 { return l.flight.wait(timeout, b) })
}

func readDNS(typ abi.DNSType, read func([]byte) int32) (d DNS, err error) {
	var n int32
	b := grow(func(b []byte) int32 { n = read(b); return n })
	if err := check("look up", n); err != nil {
		return d, err
	}
	if len(b) < 8 {
		return d, errAnswer
	}
	d.Secure, d.Seconds = u32(b)&abi.DNSSecure != 0, int64(u32(b[4:]))
	for b = b[8:]; len(b) > 0; {
		data, rest, ok := next(b)
		r, good := record(typ, data)
		if !ok || !good {
			return d, errAnswer
		}
		d.Records, b = append(d.Records, r), rest
	}
	return d, nil
}

const errAnswer = text("filter: the gateway's answer cannot be read")

func record(typ abi.DNSType, b []byte) (r Record, ok bool) {
	switch typ {
	case abi.DNSA, abi.DNSAAAA:
		r.IP = ipOf(b)
		return r, r.IP.IsValid()
	case abi.DNSTXT:
		r.Text = string(b)
	case abi.DNSMX:
		if len(b) < 2 {
			return r, false
		}
		r.Priority, r.Host = u16(b), string(b[2:])
	case abi.DNSSRV:
		if len(b) < 6 {
			return r, false
		}
		r.Priority, r.Weight, r.Port, r.Host = u16(b), u16(b[2:]), u16(b[4:]), string(b[6:])
	default:
		r.Host = string(b)
	}
	return r, true
}

// Request is a request to a web server.
type Request struct {
	Method string // default GET
	URL    string
	Header []Field
	Body   []byte
}

// Field is a header field of a request or a response.
type Field struct{ Name, Value string }

// Response is a response of a web server. The body is as it came: a filter that asks for a
// compressed one gets that.
type Response struct {
	Status int
	Header []Field
	Body   []byte
}

// Get returns the value of the first field of that name, in any case; empty if there is none.
func (r Response) Get(name string) string {
	for _, f := range r.Header {
		if equalFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Fetch makes a request. A redirect is a response like another. It takes the grant http,
// which names the hosts.
func (e Event) Fetch(r Request) (Response, error) {
	req := r.pack()
	return readResponse(func(b []byte) int32 { return e.call.host.Http(req, b) })
}

// FetchStarted is a request that runs beside the filter.
type FetchStarted struct{ flight flight }

// StartFetch begins a request and returns at once, as StartLookUp does.
func (e Event) StartFetch(r Request) FetchStarted {
	return FetchStarted{flight{e.call.host, e.call.host.Submit(int32(abi.OpHTTP), r.pack())}}
}

// Wait waits for the response as that of a look-up does.
func (f FetchStarted) Wait(timeout int64) (Response, error) {
	return readResponse(func(b []byte) int32 { return f.flight.wait(timeout, b) })
}

func (r Request) pack() []byte {
	if r.Method == "" {
		r.Method = "GET"
	}
	b := elements(nil, r.Method, r.URL, string(r.Body))
	for _, f := range r.Header {
		b = elements(b, f.Name, f.Value)
	}
	return b
}

func readResponse(read func([]byte) int32) (r Response, err error) {
	var n int32
	b := grow(func(b []byte) int32 { n = read(b); return n })
	if err := check("fetch", n); err != nil {
		return r, err
	}
	if len(b) < 4 {
		return r, errAnswer
	}
	r.Status = int(u32(b))
	body, rest, ok := next(b[4:])
	r.Body = body
	for ok && len(rest) > 0 {
		var name, value []byte
		if name, rest, ok = next(rest); ok {
			value, rest, ok = next(rest)
		}
		r.Header = append(r.Header, Field{string(name), string(value)})
	}
	if !ok {
		return r, errAnswer
	}
	return r, nil
}
