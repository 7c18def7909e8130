package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// client_dial.go connects to one server and makes the connection ready for a login or a
// message: addresses, TCP, TLS, greeting, EHLO. It knows no MX: whoever sends to a domain has
// to say which host that is.

// TLSMode is when a connection is encrypted.
type TLSMode int

// The modes. Where one of them finds a server that cannot do what it asks for, there is no
// connection: of these, TLSOpportunistic alone goes on in clear text.
const (
	// TLSOffered is STARTTLS where the server offers it; on port 465 it is TLSImplicit (RFC
	// 8314, Section 3.3). A handshake that fails is an error, but who can change what the
	// server says can take the offer away.
	TLSOffered TLSMode = iota
	// TLSOff never says STARTTLS.
	TLSOff
	// TLSOpportunistic is STARTTLS where it works (RFC 7435). A server that refuses it after
	// all is spoken to in clear text on the same connection, one with which the handshake
	// fails on a new one. Certificates are not looked at, since clear text would do, unless
	// DialOptions.TLSConfig says how.
	TLSOpportunistic
	// TLSRequired says STARTTLS even if it is not offered.
	TLSRequired
	// TLSImplicit is TLS from the first octet.
	TLSImplicit
)

// DialOptions are how Dial connects. The zero value of each field means its default.
type DialOptions struct {
	// ClientOptions are those of the Client. LocalName may be an IP address without brackets
	// or a name in Unicode here. Default: the name of this machine if it has a domain, else
	// our address on the connection as a literal (RFC 5321, Section 4.1.4).
	ClientOptions

	// TLS is when the connection is encrypted. Default TLSOffered.
	TLS TLSMode
	// TLSConfig is how. It is not changed. Default: certificates are verified by the system's
	// roots, but see TLSOpportunistic.
	TLSConfig *tls.Config
	// ServerName is what the certificate has to be for, and what the server is told (SNI).
	// Default: that of TLSConfig, or else the host.
	ServerName string

	// Conn is a connection that is there already: nothing is looked up or dialled, and Dial
	// closes it when it fails. One that is a *tls.Conn counts as encrypted.
	Conn net.Conn
	// Addrs are the addresses of the host, in the order to try. Default: they are looked up.
	Addrs []netip.Addr
	// Resolve looks the host up. Default: the system's resolver, in its order (RFC 6724).
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// ResolveTimeout bounds the look-up. Default 30 s.
	ResolveTimeout time.Duration
	// Dial makes a connection to an address, with its port: by way of a proxy, say. Default:
	// net.Dialer. With HappyEyeballs it must be safe for concurrent use.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// LocalAddr is the address to connect from; then addresses of the other family are left
	// out. Default: the system chooses.
	LocalAddr netip.Addr
	// HappyEyeballs connects to several addresses at a time, the families in turn, and takes
	// the first that answers (RFC 8305). Off, the next address is tried when one has failed.
	HappyEyeballs bool
	// AttemptDelay is how long an attempt of HappyEyeballs has before the next one begins
	// beside it. Default 250 ms (RFC 8305, Section 5).
	AttemptDelay time.Duration
	// ConnectTimeout is how long it may take to connect to any of the addresses, TLS from the
	// first octet included. What is left is shared among those that are left, so that a dead
	// one does not take the time of all. Default 2 minutes.
	ConnectTimeout time.Duration
}

// Limits of Dial.
const (
	maxAddrs = 32              // that are tried
	minShare = 2 * time.Second // that an address has, if that much time is left
)

// Validate returns what is wrong with the options, all of it joined.
func (o DialOptions) Validate() error {
	var errs []error
	bad := func(wrong bool, text string) {
		if wrong {
			errs = append(errs, errors.New("smtp: "+text))
		}
	}
	if o.LocalName != "" {
		if _, err := heloName(o.LocalName); err != nil {
			errs = append(errs, err)
		}
	}
	bad(o.TLS < TLSOffered || o.TLS > TLSImplicit, "TLS is none of its modes")
	bad(o.TLS == TLSOff && (o.TLSConfig != nil || o.ServerName != ""), "TLSConfig and ServerName are of no use with TLSOff")
	bad(o.Conn != nil && (o.Dial != nil || o.Resolve != nil || len(o.Addrs) > 0 || o.LocalAddr.IsValid() || o.HappyEyeballs),
		"Conn leaves nothing to dial: Dial, Resolve, Addrs, LocalAddr and HappyEyeballs must not be set")
	bad(o.Dial != nil && o.LocalAddr.IsValid(), "Dial decides on LocalAddr itself")
	bad(len(o.Addrs) > 0 && o.Resolve != nil, "with Addrs there is nothing to Resolve")
	bad(slices.ContainsFunc(o.Addrs, func(a netip.Addr) bool { return !a.IsValid() }), "Addrs has a zero address")
	bad(o.ResolveTimeout < 0 || o.AttemptDelay < 0 || o.ConnectTimeout < 0, "a time is negative")
	return errors.Join(errs...)
}

// Dial connects to the server at address and returns a Client that has said EHLO, within TLS
// as o.TLS asks. The address is a host, a host and a port, or "unix:/path"; a host is a name,
// or an IP address. The port is 25 by default, 465 with TLSImplicit, and 24 with LMTP.
//
// An address of the host that does not answer, or does not want to talk with us, is followed by
// the next. An error is a *ClientError, but for options and addresses that make no sense. The end
// of ctx ends every wait.
func Dial(ctx context.Context, address string, o DialOptions) (*Client, error) {
	d, err := newDialing(address, o)
	if err != nil {
		return nil, err
	}
	return d.dial(ctx)
}

// dialing is one call of Dial.
type dialing struct {
	DialOptions
	network, host, port string // a path is in host
	implicit            bool
}

func newDialing(address string, o DialOptions) (*dialing, error) {
	d := &dialing{DialOptions: o, network: "tcp"}
	setDefault(&d.ResolveTimeout, 30*time.Second)
	setDefault(&d.AttemptDelay, 250*time.Millisecond)
	setDefault(&d.ConnectTimeout, 2*time.Minute)
	err := errors.Join(o.Validate(), d.parse(address))
	d.implicit = o.TLS == TLSImplicit || o.TLS == TLSOffered && d.port == "465"
	if d.port == "" {
		d.port = d.defaultPort()
	}
	if o.LMTP && d.port == "25" && o.Conn == nil {
		// RFC 2033, Section 5.
		err = errors.Join(err, errors.New("smtp: LMTP must not be spoken on port 25"))
	}
	if d.network == "unix" && (len(o.Addrs) > 0 || o.Resolve != nil || o.LocalAddr.IsValid() || o.HappyEyeballs) {
		err = errors.Join(err, errors.New("smtp: a unix socket has no addresses"))
	}
	if err != nil {
		return nil, err
	}
	if d.Dial == nil {
		nd := &net.Dialer{}
		if o.LocalAddr.IsValid() {
			nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.LocalAddr, 0))
		}
		d.Dial = nd.DialContext
	}
	return d, nil
}

func (d *dialing) defaultPort() string {
	switch {
	case d.network == "unix":
		return ""
	case d.implicit:
		return "465"
	case d.LMTP:
		return "24"
	}
	return "25"
}

// parse takes the address apart.
func (d *dialing) parse(address string) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && path != "" {
		d.network, d.host = "unix", path
		return nil
	}
	d.host = address
	if _, err := netip.ParseAddr(address); err != nil && strings.Contains(address, ":") {
		host, port, err := net.SplitHostPort(address)
		if err != nil && strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
			host, port, err = address[1:len(address)-1], "", nil
		} else if n, e := strconv.ParseUint(port, 10, 16); err == nil && (e != nil || n == 0) {
			err = fmt.Errorf("port %q is no number", clip(port, 20))
		}
		if err != nil {
			return fmt.Errorf("smtp: address %q: %w", clip(address, 80), err)
		}
		d.host, d.port = host, port
	}
	if _, err := netip.ParseAddr(d.host); err == nil {
		return nil
	}
	name, err := hostName(d.host)
	if err != nil {
		return fmt.Errorf("smtp: address %q: %w", clip(address, 80), err)
	}
	d.host = name
	return nil
}

// hostName returns a name as it is looked up: in A-labels, without a final dot.
func hostName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if dom, err := ParseDomain(s); err == nil && !dom.IsLiteral() {
		return dom.String(), nil
	}
	// A name with an underscore is no mail domain, but a host may be called so.
	if dom, err := ParseDomain(strings.ReplaceAll(s, "_", "x")); err != nil || dom.IsLiteral() || !isASCII(s) {
		return "", errDomain
	}
	return strings.ToLower(s), nil
}

// heloName returns what to say in EHLO for a name in the options.
func heloName(s string) (string, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return AddrDomain(addr).String(), nil
	}
	if dom, err := ParseDomain(s); err == nil {
		return dom.String(), nil
	}
	if !isHeloName(s) {
		return "", fmt.Errorf("smtp: %q is not a name to say in EHLO", clip(s, 80))
	}
	return s, nil
}

// ownName is what to say in EHLO on nc where nothing was set.
func ownName(nc net.Conn) string {
	if name, err := os.Hostname(); err == nil && strings.Contains(name, ".") {
		if dom, err := ParseDomain(name); err == nil {
			return dom.String()
		}
	}
	if tcp, ok := nc.LocalAddr().(*net.TCPAddr); ok {
		if addr := tcp.AddrPort().Addr().Unmap(); addr.IsValid() {
			return AddrDomain(addr).String()
		}
	}
	return "[127.0.0.1]"
}

// dial makes the connection ready.
func (d *dialing) dial(ctx context.Context) (*Client, error) {
	if d.Conn != nil {
		c, err := d.begin(ctx, d.Conn, d.ConnectTimeout)
		if err != nil {
			return nil, err
		}
		return d.finish(ctx, c, nil)
	}
	if d.network == "unix" {
		return d.any(ctx, []string{d.host})
	}
	addrs, err := d.addresses(ctx)
	if err != nil {
		return nil, err
	}
	return d.any(ctx, addrs)
}

// addresses returns the addresses of the host, with the port.
func (d *dialing) addresses(ctx context.Context) ([]string, error) {
	addrs := d.Addrs
	if addr, err := netip.ParseAddr(d.host); len(addrs) == 0 && err == nil {
		addrs = []netip.Addr{addr}
	}
	if len(addrs) == 0 {
		var err error
		if addrs, err = d.lookUp(ctx); err != nil {
			return nil, err
		}
	}
	var list []string
	for _, a := range d.order(addrs) {
		s := netip.AddrPortFrom(a, 0).String()
		s = strings.TrimSuffix(s, "0") + d.port
		if !slices.Contains(list, s) && len(list) < maxAddrs {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil, &ClientError{Phase: PhaseResolve, Kind: KindDNS, Err: fmt.Errorf("host %s has no address that can be used", d.host)}
	}
	return list, nil
}

func (d *dialing) lookUp(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, d.ResolveTimeout)
	defer cancel()
	resolve := d.Resolve
	if resolve == nil {
		resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	addrs, err := resolve(ctx, d.host)
	if err == nil {
		return addrs, nil
	}
	e := &ClientError{Phase: PhaseResolve, Kind: KindDNS, Err: fmt.Errorf("looking up %s: %w", d.host, err)}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind = KindCanceled
	case ctx.Err() != nil:
		e.Kind = KindTimeout
	}
	return nil, e
}

// order leaves out what LocalAddr cannot reach. For HappyEyeballs it puts the families in turn,
// beginning with that of the first address (RFC 8305, Section 4).
func (d *dialing) order(addrs []netip.Addr) []netip.Addr {
	var first, other []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case d.LocalAddr.IsValid() && a.Is4() != d.LocalAddr.Unmap().Is4():
		case len(first) == 0, !d.HappyEyeballs, a.Is4() == first[0].Is4():
			first = append(first, a)
		default:
			other = append(other, a)
		}
	}
	list := make([]netip.Addr, 0, len(first)+len(other))
	for i := range max(len(first), len(other)) {
		list = append(list, first[min(i, len(first)):min(i+1, len(first))]...)
		list = append(list, other[min(i, len(other)):min(i+1, len(other))]...)
	}
	return list
}

// any connects to one of the addresses, each of which is tried once.
func (d *dialing) any(ctx context.Context, addrs []string) (*Client, error) {
	var errs []*ClientError
	deadline := time.Now().Add(d.ConnectTimeout)
	for len(addrs) > 0 && ctx.Err() == nil {
		var nc net.Conn
		var at string
		if d.HappyEyeballs {
			nc, at, addrs, errs = d.race(ctx, deadline, addrs, errs)
		} else {
			nc, at, addrs, errs = d.next(ctx, deadline, addrs, errs)
		}
		if nc == nil {
			continue
		}
		c, err := d.begin(ctx, nc, share(deadline, 1+len(addrs)))
		if err == nil {
			return d.finish(ctx, c, &at)
		}
		err.Err = fmt.Errorf("%s: %w", at, orReply(err))
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, endOf(ctx)
	}
	return nil, joined(errs)
}

// orReply is the cause of e, which the address is put before.
func orReply(e *ClientError) error {
	if e.Err != nil {
		return e.Err
	}
	return e.Reply
}

// endOf is the error of a context that has ended.
func endOf(ctx context.Context) *ClientError {
	kind := KindTimeout
	if errors.Is(ctx.Err(), context.Canceled) {
		kind = KindCanceled
	}
	return &ClientError{Phase: PhaseConnect, Kind: kind, Err: context.Cause(ctx)}
}

// joined makes one error of those of all addresses: a temporary one if there is one.
func joined(errs []*ClientError) error {
	if len(errs) == 1 {
		return errs[0]
	}
	i := max(0, slices.IndexFunc(errs, (*ClientError).Temporary))
	e := *errs[i]
	causes := make([]error, len(errs))
	for i, err := range errs {
		causes[i] = err
	}
	e.Err = errors.Join(causes...)
	return &e
}

// share is how long the first of n addresses may take.
func share(deadline time.Time, n int) time.Duration {
	left := time.Until(deadline)
	return max(min(minShare, left), left/time.Duration(max(n, 1)), time.Nanosecond)
}

// next connects to the first address and returns the others.
func (d *dialing) next(ctx context.Context, deadline time.Time, addrs []string, errs []*ClientError) (net.Conn, string, []string, []*ClientError) {
	ctx, cancel := context.WithTimeout(ctx, share(deadline, len(addrs)))
	defer cancel()
	nc, err := d.Dial(ctx, d.network, addrs[0])
	if err != nil {
		return nil, "", addrs[1:], append(errs, notConnected(ctx, addrs[0], err))
	}
	return nc, addrs[0], addrs[1:], errs
}

func notConnected(ctx context.Context, address string, err error) *ClientError {
	e := &ClientError{Phase: PhaseConnect, Kind: KindConnection, Err: fmt.Errorf("%s: %w", address, err)}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind = KindCanceled
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		e.Kind = KindTimeout
	}
	return e
}

// attempt is the outcome of one connect of a race.
type attempt struct {
	nc  net.Conn
	at  string
	err error
}

// race connects to the addresses beside each other: one more when AttemptDelay has passed, or
// when an attempt has failed. The first that succeeds wins; rest is the addresses that have not
// failed. It returns when every attempt has ended.
func (d *dialing) race(ctx context.Context, deadline time.Time, addrs []string, errs []*ClientError) (won net.Conn, at string, rest []string, _ []*ClientError) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	outcomes := make(chan attempt)
	running, rest := 0, slices.Clone(addrs)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var begin <-chan time.Time
		if won == nil && len(addrs) > 0 && ctx.Err() == nil {
			begin = timer.C
		} else if running == 0 {
			break
		}
		select {
		case <-begin:
			address := addrs[0]
			addrs = addrs[1:]
			running++
			go func() {
				nc, err := d.Dial(ctx, d.network, address)
				outcomes <- attempt{nc, address, err}
			}()
			timer.Reset(d.AttemptDelay)
		case a := <-outcomes:
			running--
			switch {
			case a.err == nil && won == nil:
				won, at = a.nc, a.at
				rest = without(rest, a.at)
				cancel()
			case a.err == nil:
				a.nc.Close()
			case won == nil:
				errs = append(errs, notConnected(ctx, a.at, a.err))
				rest = without(rest, a.at)
				timer.Reset(0)
			}
		}
	}
	if won == nil && len(rest) > 0 {
		errs, rest = append(errs, endOf(ctx)), nil // the time is over
	}
	return won, at, rest, errs
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(list, func(e string) bool { return e == s })
}

// begin reads the greeting on nc and says EHLO, within TLS if that comes first. It closes nc if
// it fails.
func (d *dialing) begin(ctx context.Context, nc net.Conn, handshake time.Duration) (*Client, *ClientError) {
	o := d.ClientOptions
	if o.LocalName == "" {
		o.LocalName = ownName(nc)
	} else {
		o.LocalName, _ = heloName(o.LocalName) // which Validate has seen
	}
	if _, already := nc.(*tls.Conn); d.implicit && !already {
		tc := tls.Client(nc, d.tlsConfig())
		ctx, cancel := context.WithTimeout(ctx, handshake)
		err := tc.HandshakeContext(ctx)
		ended := ctx.Err()
		cancel()
		if err != nil {
			nc.Close()
			e := &ClientError{Phase: PhaseConnect, Kind: KindTLS, Err: fmt.Errorf("TLS handshake: %w", err)}
			if ended != nil {
				e.Kind = endOf(ctx).Kind
			}
			return nil, e
		}
		nc = tc
	}
	c := newClient(ctx, nc, o)
	c.noHelo = d.TLS == TLSRequired
	if err := c.begin(ctx); err != nil {
		e := c.typed(err)
		c.Close()
		return nil, e
	}
	return c, nil
}

// tlsConfig is how TLS is spoken.
func (d *dialing) tlsConfig() *tls.Config {
	config := &tls.Config{InsecureSkipVerify: d.TLS == TLSOpportunistic} // see there
	if d.TLSConfig != nil {
		config = d.TLSConfig.Clone()
	}
	if d.ServerName != "" {
		config.ServerName = d.ServerName
	}
	if config.ServerName == "" {
		config.ServerName = d.host
		if d.network == "unix" {
			config.ServerName = "localhost"
		}
	}
	return config
}

// finish says STARTTLS where it is wanted. at is the address that was dialled, nil if none was.
func (d *dialing) finish(ctx context.Context, c *Client, at *string) (*Client, error) {
	_, offered := c.Extension("STARTTLS")
	if c.tls != nil || d.TLS == TLSOff || !offered && d.TLS != TLSRequired {
		return c, nil
	}
	err := c.StartTLS(ctx, d.tlsConfig())
	if err == nil {
		return c, nil
	}
	_, refused := err.(*Reply)
	if d.TLS == TLSOpportunistic && refused && !c.Broken() {
		return c, nil // in clear text, and what EHLO said still holds
	}
	e := c.typed(err)
	again := d.TLS == TLSOpportunistic && e.Kind == KindTLS && at != nil && ctx.Err() == nil
	c.Close()
	if !again {
		return nil, e
	}
	clear := *d
	clear.TLS, clear.implicit = TLSOff, false
	plain, err := clear.any(ctx, []string{*at})
	if p, ok := errors.AsType[*ClientError](err); ok {
		return nil, joined([]*ClientError{p, e})
	}
	return plain, err
}
