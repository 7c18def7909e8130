package tlsrpt

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/penstock/penstock/internal/netguard"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// options.go: settings, their defaults and what may be wrong with them.

// Options are the settings of a Reporter. The zero value of each field that is not required
// means its default.
type Options struct {
	// Submitter is the domain that reports are of. Required.
	Submitter string
	// Organization is who sends, in a report. Default Submitter.
	Organization string
	// From is the address that reports are mailed from. Required.
	From smtp.Path
	// Contact is the address to write to about a report. Default From.
	Contact string
	// Files is where counts are kept. Required.
	Files Files
	// DNS finds out who wants reports, and the addresses of web servers. Required.
	DNS resolver.DNS
	// Mail takes a report that is to be mailed, and returns once it is safe. An error means
	// that it was not taken; it is tried again later. Required.
	Mail func(context.Context, Mail) error
	// Lead tells whether we are the node that sends reports. It is asked again and again, every
	// two minutes at least while there is something to send, and is to tell no two nodes so for
	// five. Nil is always.
	Lead func(context.Context) (bool, error)
	// FlushEvery is how often counts are written to Files. Default a minute; less than five.
	FlushEvery time.Duration
	// Spread is the time over which the reports of a day are sent, from a quarter of an hour
	// after its end on. Default four hours, the example of RFC 8460, Section 4.1; negative
	// is no time.
	Spread time.Duration
	// Memory is how much is counted, in octets, before a new set of counts is begun; twice as
	// much is held at a time. Default 16 MiB.
	Memory int
	// RootCAs are the authorities of web servers that take reports. Nil means those of the
	// system.
	RootCAs *x509.CertPool
	// Check tells whether an address of a web server may be connected to. Default: those of the
	// public Internet alone.
	Check func(netip.Addr) error
	// Dial makes connections to web servers, and is told an address that Check let through.
	// Default is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log gets what an operator should know: reports that were sent or could not be, counts
	// that were lost. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined.
func (o Options) Validate() error {
	var errs []error
	if !isName(o.Submitter) {
		errs = append(errs, fmt.Errorf("submitter: %q is no domain name in lower case", o.Submitter))
	}
	if o.From.IsNull() || o.From.Domain == (smtp.Domain{}) || o.From.NeedsUTF8() {
		errs = append(errs, errors.New("from: must be an address in ASCII"))
	}
	for name, text := range map[string]string{"organization": o.Organization, "contact": o.Contact} {
		if clip(text, maxText) != text {
			errs = append(errs, fmt.Errorf("%s: must be printable and have %d octets at most", name, maxText))
		}
	}
	if o.Files == nil || o.DNS == nil || o.Mail == nil {
		errs = append(errs, errors.New("files, DNS and mail are required"))
	}
	if o.FlushEvery < 0 || o.FlushEvery >= settle { // rows must be there when they are read
		errs = append(errs, fmt.Errorf("time between flushes: must be less than %v", settle))
	}
	if o.Memory < 0 {
		errs = append(errs, errors.New("memory: must not be negative"))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	o.Organization = cmp.Or(o.Organization, o.Submitter)
	o.Contact = cmp.Or(o.Contact, o.From.String())
	o.FlushEvery = cmp.Or(o.FlushEvery, time.Minute)
	o.Spread = max(cmp.Or(o.Spread, 4*time.Hour), 0)
	o.Memory = cmp.Or(o.Memory, 16<<20)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Lead == nil {
		o.Lead = func(context.Context) (bool, error) { return true, nil }
	}
	if o.Check == nil {
		o.Check = netguard.Guard{}.Check
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	return o
}

// sender is who reports.
func (o Options) sender() sender {
	return sender{organization: o.Organization, contact: o.Contact, submitter: strings.ToLower(o.Submitter)}
}
