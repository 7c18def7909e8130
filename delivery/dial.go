package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// dial.go makes a TCP connection to a host that takes the mail of a target, for programs that
// speak with it themselves. The engine goes the same way host by host, since it also needs to
// move on when a host refuses what it is told.
//
//	target -> plan -> addresses in order -> hook -> guard -> connect
//	             │                                     │ fails: the next one
//	             └─ hosts that must not be used: noted └─> Connection

// DialOptions are the settings of Dial. The zero value of each field means its default, and all
// of it may be zero.
type DialOptions struct {
	// Planner finds the hosts and what they must show. It keeps what it found, so that several
	// calls should share one. Nil makes one of Plan for the call.
	Planner *Planner
	// Plan are the settings of the Planner that is made. Without Plan.MX.DNS a resolver is
	// made for the call, too.
	Plan PlanOptions
	// Need is what is asked of hosts beside their policies, and which hosts are given.
	Need Need

	// Guard says which addresses may be connected to, whoever named them. Nil is that of the
	// Planner.
	Guard *mx.Guard
	// PreferIPv6 puts IPv6 first among hosts that are equally preferred.
	PreferIPv6 bool
	// Skip are addresses to leave out, as those that failed at something later. LastError is
	// what Dial returns if Skip leaves nothing. Default a temporary *mx.Error.
	Skip      []netip.Addr
	LastError error
	// MaxAttempts is how many addresses are tried. Default 20.
	MaxAttempts int

	// Source is where connections come from.
	Source Source
	// ConnectTimeout is how long one connection may take. Default 30 s.
	ConnectTimeout time.Duration
	// Timeout is how long all of it may take. Default 5 minutes.
	Timeout time.Duration

	// Before is called before each attempt to connect, and may change it. An error ends the
	// call, which returns it as it is.
	Before func(ctx context.Context, a *Attempt) error
	// Failed is told of each host that must not be used and each address that could not be
	// connected to, when its turn has come. It is not told of an error of Before.
	Failed func(Tried)
	// Dial makes connections in place of a net.Dialer, as through a proxy. The local address of
	// Source has no effect then. It must end with ctx.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Validate returns every problem of the options, joined, or nil.
func (o DialOptions) Validate() error {
	errs := []error{o.Source.Validate()}
	if o.Planner == nil {
		plan := o.Plan
		if plan.MX.DNS == nil {
			plan.MX.DNS = (*resolver.Resolver)(nil) // one is made
		}
		errs = append(errs, plan.Validate())
	}
	for _, n := range []struct {
		what  string
		value int64
	}{{"number of attempts", int64(o.MaxAttempts)}, {"time limit of a connection", int64(o.ConnectTimeout)}, {"time limit", int64(o.Timeout)}} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("dial: %s is negative", n.what))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	return nil
}

// Attempt is an attempt to connect, as Before sees it.
type Attempt struct {
	// Plan is where the mail goes, and Host the host whose turn it is. Neither is to be changed.
	Plan *Plan
	Host *PlannedHost
	// Addr is where to connect to. If Before changes it, it goes through the guard again; the
	// host keeps its name and what it must show.
	Addr netip.AddrPort
	// Local is the address to come from, the zero Addr leaving it to the system, and Helo the
	// name that goes with it. They follow a change of Addr unless they are changed, too.
	Local netip.Addr
	Helo  string
	// Conn is nil. If Before sets it, it is the connection, and none is made: whoever made it
	// answers for where it leads. It is closed if Before returns an error.
	Conn net.Conn
}

// Tried is a host or an address that was of no use.
type Tried struct {
	Host *PlannedHost
	// Addr is the address, the zero one if the host must not be used at all.
	Addr netip.AddrPort
	// Err is an *mx.Error.
	Err error
	// Took is how long it took.
	Took time.Duration
}

// DialError is the error of Dial if nothing that was tried was of use.
type DialError struct {
	// Err is the first error that may be over later, or the first one if none may. It is an
	// *mx.Error, or DialOptions.LastError.
	Err error
	// Tried is all that was tried, in order.
	Tried []Tried
}

// Error returns Err on one line, and how many others there were.
func (e *DialError) Error() string {
	if n := len(e.Tried) - 1; n > 0 {
		return fmt.Sprintf("%v (and %s more)", e.Err, count(n, "attempt"))
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// Temporary tells whether trying again later may help.
func (e *DialError) Temporary() bool { return mx.Temporary(e.Err) }

// Dial connects to the first host that can be reached of those that take the mail of a target:
// a domain, an e-mail address, an IP address or an address literal, as mx.ParseTarget reads it.
// The greeting has not been read, and TLS has not begun; Connection.Host tells what must be asked
// for before mail is sent, and Securer.Secure does it.
//
// The error is an *mx.Error if there is nothing to try, and a *DialError, which wraps one, if
// nothing of it was of use. Its category says at which step it failed, and smtp.ReplyOf what a
// sender is to be told. An error of DialOptions.Before is returned as it is; settings that are
// wrong are an error of another type.
func Dial(ctx context.Context, target string, o DialOptions) (*Connection, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	t, err := mx.ParseTarget(target)
	if err != nil {
		return nil, err
	}
	setDefault(&o.MaxAttempts, 20)
	setDefault(&o.ConnectTimeout, 30*time.Second)
	setDefault(&o.Timeout, 5*time.Minute)
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if o.Planner == nil {
		end, err := o.makePlanner()
		if err != nil {
			return nil, err
		}
		defer end()
	}
	if o.Guard == nil {
		o.Guard = o.Planner.opt.MX.Guard
	}
	plan, err := o.Planner.Plan(ctx, t, o.Need)
	if err != nil {
		return nil, err
	}
	d := &dialing{DialOptions: o, plan: plan}
	return d.run(ctx)
}

// makePlanner makes a Planner for one call. What end does is due after it.
func (o *DialOptions) makePlanner() (end func(), err error) {
	var r *resolver.Resolver
	if o.Plan.MX.DNS == nil {
		if r, err = resolver.New(resolver.Options{}); err != nil {
			return nil, err
		}
		o.Plan.MX.DNS = r
	}
	o.Planner, err = NewPlanner(o.Plan)
	end = func() {
		if o.Planner != nil {
			o.Planner.Close()
		}
		if r != nil {
			r.Close()
		}
	}
	if err != nil {
		end()
	}
	return end, err
}

// dialing is one Dial under way.
type dialing struct {
	DialOptions
	plan  *Plan
	tried []Tried
}

// run tries one address after the other.
func (d *dialing) run(ctx context.Context) (*Connection, error) {
	tries, refused, skipped := d.order()
	for i, t := range tries {
		host := &d.plan.Hosts[t.Host]
		for len(refused) > 0 && refused[0].Preference <= host.Preference {
			d.pass(refused[0])
			refused = refused[1:]
		}
		if i == d.MaxAttempts || ctx.Err() != nil {
			break
		}
		if c, err := d.try(ctx, host, t.Addr); c != nil || err != nil {
			return c, err
		}
	}
	for _, h := range refused {
		d.pass(h)
	}
	return nil, d.failure(ctx, skipped && len(tries) == 0)
}

// order returns the addresses to try in order, the hosts that must not be used by preference,
// and whether addresses were left out because we were told so.
func (d *dialing) order() (tries []mx.Try, refused []*PlannedHost, skipped bool) {
	hosts := make([]mx.Host, len(d.plan.Hosts))
	for i := range d.plan.Hosts {
		h := &d.plan.Hosts[i]
		hosts[i] = h.Host
		if h.Refused != nil {
			hosts[i].Err = h.Refused
			refused = append(refused, h)
		}
	}
	tries = mx.Order(hosts, d.PreferIPv6, nil)
	all := len(tries)
	tries = slices.DeleteFunc(tries, func(t mx.Try) bool { return slices.Contains(d.Skip, t.Addr) })
	return tries, refused, len(tries) < all
}

// pass notes a host that must not be used.
func (d *dialing) pass(h *PlannedHost) { d.note(Tried{Host: h, Err: h.Refused}) }

func (d *dialing) note(t Tried) {
	d.tried = append(d.tried, t)
	if d.Failed != nil {
		d.Failed(t)
	}
}

// failure is the error when nothing was of use.
func (d *dialing) failure(ctx context.Context, skipped bool) error {
	if skipped && d.LastError != nil {
		return &DialError{d.LastError, d.tried}
	}
	e := &DialError{Tried: d.tried}
	for _, t := range d.tried {
		if e.Err == nil || mx.Temporary(t.Err) && !mx.Temporary(e.Err) {
			e.Err = t.Err
		}
	}
	if e.Err == nil {
		text := "no mail server of the recipient's domain could be reached, try again later"
		e.Err = &mx.Error{Category: mx.Network, Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, text), Target: d.plan.Target, Err: context.Cause(ctx)}
	}
	return e
}

// try connects to an address. Both results are nil if the next one is to be tried.
func (d *dialing) try(ctx context.Context, h *PlannedHost, addr netip.Addr) (*Connection, error) {
	start := time.Now()
	a := Attempt{Plan: d.plan, Host: h, Addr: netip.AddrPortFrom(addr, h.Port)}
	a.Local, a.Helo = d.Source.For(addr)
	if err := d.before(ctx, &a); err != nil {
		return nil, err
	}
	nc, err := d.connect(ctx, &a)
	if err != nil {
		d.note(Tried{h, a.Addr, connectError(d.plan.Target, h, &a, err), time.Since(start)})
		return nil, nil
	}
	return newConnection(nc, &a, d.tried), nil
}

// before asks the hook.
func (d *dialing) before(ctx context.Context, a *Attempt) error {
	if d.Before == nil {
		return nil
	}
	was := *a
	if err := d.Before(ctx, a); err != nil {
		if a.Conn != nil {
			a.Conn.Close()
		}
		return err
	}
	if a.Addr != was.Addr {
		local, helo := d.Source.For(a.Addr.Addr())
		if a.Local == was.Local {
			a.Local = local
		}
		if a.Helo == was.Helo {
			a.Helo = helo
		}
	}
	return nil
}

// connect makes the connection, in the time that there is for one.
func (d *dialing) connect(ctx context.Context, a *Attempt) (net.Conn, error) {
	if a.Conn != nil {
		return a.Conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.ConnectTimeout)
	defer cancel()
	// The guard looks at the address once more, whoever named it: a plan may have been made
	// under other rules, or an address moved to this machine. Behind it, the dialer looks at
	// what is connected to in fact.
	if err := d.Guard.Check(a.Addr.Addr()); err != nil {
		return nil, err
	}
	if d.Dial != nil {
		return d.Dial(ctx, "tcp", a.Addr.String())
	}
	dialer := net.Dialer{Control: d.Guard.Control}
	if a.Local.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Local, 0))
	}
	return dialer.DialContext(ctx, "tcp", a.Addr.String())
}
