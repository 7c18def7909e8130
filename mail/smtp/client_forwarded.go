package smtp

import (
	"context"
	"strings"
)

// client_forwarded.go tells a server whom we speak for.

// XClient asks the server to take us for the client f. The server greets anew then, and
// EHLO is said again, in the name of the client where that is known; so Extension and the
// rest may have changed. Login, Helo and all the rest of f are what the server goes by from
// here on, until the next XClient.
//
// A refusal is a *Reply, and what the server takes us for is unknown then. If it was EHLO
// that was refused, Extension knows of none any more. Ident and Source are not sent. If the
// server does not offer XCLIENT to us the refusal is 502 5.5.1, and nothing was said.
func (c *Client) XClient(ctx context.Context, f Forwarded) error {
	if err := c.tell(ctx, "XCLIENT", f, xclientSet, 220); err != nil {
		return err
	}
	name := c.opts.LocalName
	if isHeloName(f.Helo) {
		name = f.Helo
	}
	return c.helloAs(name)
}

// XForward tells the server for its log that the next message comes from the client f. A
// refusal is a *Reply and changes nothing; 502 5.5.1 if the server does not offer XFORWARD
// to us, and then nothing was said. Login, DestAddr and DestPort are not sent.
func (c *Client) XForward(ctx context.Context, f Forwarded) error {
	return c.tell(ctx, "XFORWARD", f, xforwardSet, 250)
}

// tell says in as many commands as it takes what the server wants to know of f.
func (c *Client) tell(ctx context.Context, verb string, f Forwarded, known forwardedSet, want int) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	lines, n := appendForwarded(nil, verb, f, offeredSet(c.ext[verb])&known)
	if n == 0 {
		return Refuse(502, Enhanced{5, 5, 1}, "the next hop does not offer "+verb)
	}
	c.phase = Phase(verb)
	for line := range strings.SplitSeq(strings.TrimSuffix(string(lines), "\r\n"), "\r\n") {
		r, err := c.command(line)
		if err != nil {
			return err
		}
		if r.Code != want {
			return c.refusal(r)
		}
	}
	return nil
}
