package smtp

import (
	"net"
	"net/netip"
)

// xclient.go: the server's side of XCLIENT and XFORWARD, by which a proxy that is trusted
// says whom it speaks for. XCLIENT makes the dialogue start over, as the client's own: a new
// Session is opened, which finds the client's address and name in its Conn.

// trusts tells whether the peer may say verb.
func (c *conn) trusts(verb string) bool {
	may := c.srv.opts.XClient
	if verb == "XFORWARD" {
		may = c.srv.opts.XForward
	}
	return may != nil && !c.srv.lacks[verb] && may(c.nc.RemoteAddr())
}

// forward answers XCLIENT and XFORWARD.
func (c *conn) forward(verb, args string) error {
	switch {
	case !c.trusts(verb):
		return c.offence(Refuse(550, Enhanced{5, 7, 1}, "you may not say this here"))
	case c.inMail:
		return c.offence(badSequence("not within a transaction"))
	}
	allowed := xclientSet
	if verb == "XFORWARD" {
		allowed = xforwardSet
	}
	f, set, err := parseForwarded(args, allowed)
	if err != nil {
		return c.offence(err)
	}
	if verb == "XFORWARD" {
		c.xforward = c.xforward.with(f, set)
		return c.say(250, Enhanced{2, 0, 0}, "OK")
	}
	return c.impersonate(f, set)
}

// impersonate starts the dialogue over for the client that XCLIENT tells of. The peer stays
// who it is: what it may say is still decided by its own address.
func (c *conn) impersonate(f Forwarded, set forwardedSet) error {
	c.xclient = c.xclient.with(f, set)
	x := c.xclient
	c.remote = forwardedEnd(c.remote, x.Addr, x.Port, set.has(forwardedAddr))
	c.local = forwardedEnd(c.local, x.DestAddr, x.DestPort, set.has(forwardedDestAddr))
	old := c.sess
	c.sess = nil
	c.guard(func() error { old.Close(nil); return nil })
	c.helo, c.esmtp, c.authed = "", false, c.srv.opts.XClientLogin && c.xclient.Login != ""
	c.skips, c.xforward = false, nil
	c.offer = c.srv.opts.Offer
	return c.begin()
}

// forwardedEnd is the address of one end of the connection. One that is said not to be
// known is no address at all: what there was is the proxy's, or another client's.
func forwardedEnd(old net.Addr, a netip.Addr, port uint16, said bool) net.Addr {
	switch {
	case a.IsValid():
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, port))
	case said:
		return &net.TCPAddr{}
	}
	return old
}
