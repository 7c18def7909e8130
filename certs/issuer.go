package certs

// issuer.go orders certificates from a CA. It is an issuer for certmagic on top of acmez, in
// place of certmagic's own, so that the challenges are answered by our listeners, nothing is
// asked on a terminal, and no connection outlives us.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

const (
	// caWait bounds one request to the CA.
	caWait = 30 * time.Second

	// maxCAResponse bounds one answer of the CA in bytes. A chain is some 5 KiB.
	maxCAResponse = 1 << 20
)

// An issuer orders from one CA with one account. Its methods are safe for concurrent use.
type issuer struct {
	acme      ACME
	disk      *disk
	responder *responder
	http      *http.Client
	log       *slog.Logger

	mu      sync.Mutex   // one registration at a time
	account acme.Account // zero until it is needed; guarded by mu
}

func newIssuer(a ACME, d *disk, r *responder, log *slog.Logger) *issuer {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: caWait}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: a.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   caWait,
		ResponseHeaderTimeout: caWait,
		IdleConnTimeout:       caWait,
		MaxIdleConnsPerHost:   slots,
		ForceAttemptHTTP2:     true,
	}
	return &issuer{acme: a, disk: d, responder: r, log: log, http: &http.Client{Transport: limited{transport}, Timeout: caWait}}
}

// close ends the connections to the CA.
func (i *issuer) close() { i.http.CloseIdleConnections() }

// limited bounds the body of every answer: acmez reads to the end.
type limited struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.Transport.RoundTrip(req)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxCAResponse)
	}
	return resp, err
}

// client returns a client with the directory yet to be read, so that a long run sees when the
// CA changes it.
func (i *issuer) client() *acme.Client {
	return &acme.Client{
		Directory: i.acme.Directory, HTTPClient: i.http, UserAgent: "Penstock",
		Logger: slog.New(quiet{i.log.Handler()}),
	}
}

// An order is the issuer for one visit to one name.
type order struct {
	*issuer
	replaces *x509.Certificate // of the same CA; nil: none, or the order shall not say so
}

// IssuerKey implements certmagic.Issuer.
func (i *issuer) IssuerKey() string { return i.disk.issuer }

// GetRenewalInfo implements certmagic.RenewalInfoGetter: when the CA wants a certificate
// renewed (RFC 9773).
func (i *issuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.client().GetRenewalInfo(ctx, cert.Leaf)
}

// Issue implements certmagic.Issuer. An account that the CA has lost is made anew, once.
func (o *order) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	solvers, err := o.responder.solvers()
	if err != nil {
		return nil, err
	}
	issued, err := o.try(ctx, csr, solvers)
	var problem acme.Problem
	if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		o.log.Warn("the CA does not know our account, making another", "err", err)
		if err := o.forget(ctx); err != nil {
			return nil, err
		}
		issued, err = o.try(ctx, csr, solvers)
	}
	return issued, err
}

func (o *order) try(ctx context.Context, csr *x509.CertificateRequest, solvers map[string]acmez.Solver) (*certmagic.IssuedCertificate, error) {
	client := &acmez.Client{Client: o.client(), ChallengeSolvers: solvers}
	account, err := o.register(ctx, client.Client)
	if err != nil {
		return nil, err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, fmt.Errorf("make order: %w", err)
	}
	// RFC 9773, Section 5: a CA may exempt an order that replaces a certificate from its
	// limits.
	if o.replaces != nil && len(o.replaces.AuthorityKeyId) > 0 {
		params.Replaces = o.replaces
	}
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the CA gave no certificate")
	}
	// The first is what the CA prefers; others lead to roots that fewer know.
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
}

// accounts is the folder of accounts with CAs.
const accounts = "acme"

// stored is an account as it is kept. It is one file, so that no crash can part the two.
type stored struct {
	Account acme.Account `json:"account"`
	Key     string       `json:"key"` // PEM
}

func (i *issuer) accountKey() string {
	return path.Join(accounts, i.disk.issuer, certmagic.StorageKeys.Safe(i.acme.Email)+".json")
}

// register returns our account with the CA: the one in use, the one that is kept, or a new
// one. Of those who share a storage one makes it, and the others find it.
func (i *issuer) register(ctx context.Context, client *acme.Client) (acme.Account, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.account.Status == acme.StatusValid {
		return i.account, nil
	}
	account, err := i.readAccount(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		err = i.alone(ctx, func() error {
			account, err = i.readAccount(ctx)
			if errors.Is(err, fs.ErrNotExist) {
				account, err = i.newAccount(ctx, client)
			}
			return err
		})
	}
	if err != nil {
		return acme.Account{}, err
	}
	i.account = account
	return account, nil
}

// alone calls f while nobody else changes the account.
func (i *issuer) alone(ctx context.Context, f func() error) (err error) {
	lock := "account_" + i.disk.issuer
	if err := i.disk.Lock(ctx, lock); err != nil {
		return fmt.Errorf("lock account with the CA: %w", err)
	}
	defer func() { err = errors.Join(err, i.disk.Unlock(context.WithoutCancel(ctx), lock)) }()
	return f()
}

func (i *issuer) readAccount(ctx context.Context) (acme.Account, error) {
	data, err := i.disk.Load(ctx, i.accountKey())
	if err != nil {
		return acme.Account{}, fmt.Errorf("read account with the CA: %w", err)
	}
	var s stored
	err = json.Unmarshal(data, &s)
	if err == nil {
		s.Account.PrivateKey, err = certmagic.PEMDecodePrivateKey([]byte(s.Key))
	}
	if err != nil {
		// It may well be whole for somebody who looks closer; a new one costs little.
		i.disk.setAside(ctx, i.accountKey(), data)
		return acme.Account{}, fmt.Errorf("read account with the CA: %w", fs.ErrNotExist)
	}
	return s.Account, nil
}

// newAccount registers with the CA (RFC 8555, Section 7.3).
func (i *issuer) newAccount(ctx context.Context, client *acme.Client) (acme.Account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, fmt.Errorf("make key of account with the CA: %w", err)
	}
	account, err := client.NewAccount(ctx, acme.Account{
		Contact: []string{"mailto:" + i.acme.Email}, TermsOfServiceAgreed: i.acme.Agreed, PrivateKey: key,
	})
	if err != nil {
		return acme.Account{}, fmt.Errorf("register with the CA: %w", err)
	}
	pem, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return acme.Account{}, fmt.Errorf("keep account with the CA: %w", err)
	}
	data, err := json.Marshal(stored{account, string(pem)})
	if err == nil {
		err = i.disk.Store(ctx, i.accountKey(), data)
	}
	if err != nil {
		return acme.Account{}, fmt.Errorf("keep account with the CA: %w", err)
	}
	i.log.Info("registered with the CA", "directory", i.acme.Directory, "account", account.Location)
	return account, nil
}

// forget drops an account that the CA does not know. If another gateway has replaced what is
// kept since, that stays, and is ours from now on.
func (i *issuer) forget(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	lost := i.account
	i.account = acme.Account{}
	err := i.alone(ctx, func() error {
		kept, err := i.readAccount(ctx)
		if errors.Is(err, fs.ErrNotExist) || err == nil && kept.Location != lost.Location {
			return nil
		}
		if err != nil {
			return err
		}
		return i.disk.Delete(ctx, i.accountKey())
	})
	if err != nil {
		return fmt.Errorf("forget account with the CA: %w", err)
	}
	return nil
}
