package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
)

// settings.go: the configuration in the words of the packages.

func newLogger(c config.Log, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: levelOf(c.Level)}
	if c.Format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// levelOf is a level in slog's words, which those of the configuration are.
func levelOf(l config.LogLevel) slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// certOptions returns the settings of certificates, and what is wrong with the file of roots.
func certOptions(c *config.Config, log *slog.Logger) (certs.Options, config.Problems) {
	o := certs.Options{Hostname: string(c.Hostname), Dir: string(c.Certificates.Dir), MinVersion: tlsVersion(c.Certificates.MinVersion), Log: log}
	for _, f := range c.Certificates.Files {
		o.Files = append(o.Files, certs.File{Cert: string(f.Cert), Key: string(f.Key)})
	}
	if len(c.Certificates.Names) == 0 {
		return o, nil
	}
	a := c.Certificates.ACME
	o.ACME = certs.ACME{Directory: acmeDirectory(a.Directory), Email: string(a.Email), Agreed: a.Agreed == config.True,
		HTTP01: a.HTTP01.String(), TLSALPN01: a.TLSALPN01.String()}
	for _, name := range c.Certificates.Names {
		o.ACME.Names = append(o.ACME.Names, string(name))
	}
	if a.CARoots != "" {
		pool, err := readPool(string(a.CARoots))
		if err != nil {
			return o, config.Problems{c.Problem("certificates.acme.ca_roots", err.Error())}
		}
		o.ACME.Roots = pool
	}
	return o, nil
}

func acmeDirectory(d config.ACMEDirectory) string {
	switch d {
	case config.LetsEncrypt:
		return certs.LetsEncrypt
	case config.LetsEncryptStaging:
		return certs.LetsEncryptStaging
	}
	return string(d)
}

// backends returns the transport's settings, and what is wrong with the files they name.
func backends(c *config.Config) (map[string]delivery.BackendOptions, config.Problems) {
	var problems config.Problems
	all := make(map[string]delivery.BackendOptions)
	for name, b := range c.Backends {
		o := delivery.BackendOptions{
			TLS: delivery.TLSMode(b.TLS), ServerName: string(b.TLSName), Connections: b.Connections,
			ConnectTimeout: b.Timeouts.Connect,
			XClient:        b.XClient == config.True, XForward: b.XForward == config.True,
			NoChunking: b.Chunking == config.False, User: b.Login.User, ClearLogin: b.Login.Insecure == config.True,
			Timeouts: smtp.Timeouts{Command: b.Timeouts.Command, DataEnd: b.Timeouts.Data},
		}
		if !b.Pace.Off() {
			o.Pace = delivery.Pace{Messages: b.Pace.Count, Per: b.Pace.Per}
		}
		for _, group := range b.Addresses {
			var eps []delivery.Endpoint
			for _, a := range group {
				eps = append(eps, delivery.Endpoint{Network: a.Network, Address: a.Address,
					LMTP: a.Protocol == config.ProtocolLMTP, ImplicitTLS: a.ImplicitTLS})
			}
			o.Groups = append(o.Groups, eps)
		}
		if b.Login.Password != "" {
			password, err := passwordFile(string(b.Login.Password))
			if err != nil {
				problems = append(problems, c.Problem("backends."+name+".login.password", err.Error()))
			}
			o.Password = password
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

// passwordFile reads a file that holds one line.
func passwordFile(path string) (string, error) {
	text, err := readRegular(path, 4<<10)
	if err != nil {
		return "", err
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" || strings.ContainsAny(password, "\r\n\x00") {
		return "", fmt.Errorf("%s does not hold a password on one line", path)
	}
	return password, nil
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
func (t transportRelay) Begin(ctx context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	return t.BeginFor(ctx, backend, from, client)
}

// Offers implements gateway.Offers.
func (t transportRelay) Offers(backend string) (smtp.Extensions, bool) {
	o, known := t.Transport.Offers(backend)
	return o.Extensions, known
}
