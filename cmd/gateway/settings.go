package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
)

// settings.go: the configuration in the words of the packages.

func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	// The words of the configuration are slog's own.
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

func certOptions(c *config.Config, log *slog.Logger) certs.Options {
	o := certs.Options{Hostname: string(c.Hostname), Dir: string(c.Certificates.Dir), Log: log}
	for _, f := range c.Certificates.Files {
		o.Files = append(o.Files, certs.File{Cert: string(f.Cert), Key: string(f.Key)})
	}
	return o
}

func listeners(c *config.Config) []gateway.Listener {
	var list []gateway.Listener
	for _, l := range c.Listeners {
		gl := gateway.Listener{
			Name: l.Name, Network: l.Address.Network, Address: l.Address.Address, TLS: gateway.TLSMode(l.TLS),
			Chain: l.Chain, Relay: l.Accept == config.AcceptAny,
			Connections: l.Limits.Connections, ConnectionsPerIP: l.Limits.ConnectionsPerIP,
			Hops: l.Limits.Hops, MaxHeader: int(l.Limits.HeaderSize),
			Server: smtp.ServerOptions{
				MaxMessage: int64(l.Limits.MessageSize), MaxRecipients: l.Limits.Recipients, MaxMessages: l.Limits.Messages,
				MaxLine: int(l.Limits.LineLength), MaxBadCommands: l.Limits.BadCommands,
				IdleTimeout: l.Limits.IdleTimeout, SessionTimeout: l.Limits.SessionTimeout,
				HandshakeTimeout: l.Limits.HandshakeTimeout, MinRate: int64(l.Limits.DataMinRate),
			},
		}
		gl.Trusted, gl.TrustUnix = networks(l.TrustedNetworks)
		if l.LineEndings == config.LineEndingsReject {
			gl.Server.LineEndings = smtp.RejectLineEndings
		}
		list = append(list, gl)
	}
	return list
}

func networks(list config.Networks) (prefixes []netip.Prefix, unix bool) {
	for _, n := range list {
		if n.Unix {
			unix = true
		} else {
			prefixes = append(prefixes, n.Prefix)
		}
	}
	return prefixes, unix
}

func routes(c *config.Config) []gateway.Route {
	var list []gateway.Route
	for _, r := range c.Routes {
		gr := gateway.Route{Backend: r.Backend, AcceptAll: c.Backends[r.Backend].Recipients == config.RecipientsAccept}
		for _, d := range r.Domains {
			gr.Domains = append(gr.Domains, string(d))
		}
		list = append(list, gr)
	}
	return list
}

// backends returns the transport's settings, and what is wrong with the files they name.
func backends(c *config.Config) (map[string]delivery.BackendOptions, config.Problems) {
	var problems config.Problems
	all := make(map[string]delivery.BackendOptions)
	for name, b := range c.Backends {
		o := delivery.BackendOptions{
			TLS: delivery.TLSMode(b.TLS), ServerName: string(b.TLSName), Connections: b.Connections,
			ConnectTimeout: b.Timeouts.Connect,
			Timeouts:       smtp.Timeouts{Command: b.Timeouts.Command, DataEnd: b.Timeouts.Data},
		}
		for _, group := range b.Addresses {
			var eps []delivery.Endpoint
			for _, a := range group {
				eps = append(eps, delivery.Endpoint{Network: a.Network, Address: a.Address,
					LMTP: a.Protocol == config.ProtocolLMTP, ImplicitTLS: a.ImplicitTLS})
			}
			o.Groups = append(o.Groups, eps)
		}
		if b.CAFile != "" {
			pool, err := readPool(string(b.CAFile))
			if err != nil {
				problems = append(problems, c.Problem("backends."+name+".ca_file", err.Error()))
			}
			o.CAs = pool
		}
		if err := o.Validate(); err != nil {
			problems = append(problems, c.Problem("backends."+name, err.Error()))
		}
		all[name] = o
	}
	return all, problems
}

func readPool(path string) (*x509.CertPool, error) {
	pem, err := readRegular(path, 16<<20)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// transportRelay is the backend transport as the gateway's Relay: the one place where the
// two halves meet.
type transportRelay struct{ *delivery.Transport }

// Begin implements gateway.Relay.
func (t transportRelay) Begin(ctx context.Context, backend string, from smtp.Sender) (smtp.Transaction, error) {
	return t.Transport.Begin(ctx, backend, from)
}
