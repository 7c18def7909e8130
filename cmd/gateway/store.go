package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
	"github.com/penstock/penstock/store/postgres"
)

// store.go: the store, what delivers from it, and the gateway's way into it.

// openStore opens the store of a configuration; nil if it has none.
func openStore(ctx context.Context, cfg *config.Config, log *slog.Logger) (store.Store, error) {
	switch cfg.Store.Driver {
	case config.StoreEmbedded:
		return embedded.Open(string(cfg.Store.Path), embedded.Options{Log: log})
	case config.StorePostgres:
		keys, err := readKeys(string(cfg.Store.Key))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, databaseTime)
		defer cancel()
		return postgres.Open(ctx, postgres.Options{URL: cfg.Store.URL, Keys: keys, Log: log})
	}
	return nil, nil
}

// databaseTime is how long the database may take to answer at the start.
const databaseTime = time.Minute

// readKeys reads a file with a key on each line, the first of which encrypts; the others are
// those that it replaced.
func readKeys(path string) ([][]byte, error) {
	text, err := readRegular(path, 64<<10)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for line := range strings.FieldsSeq(string(text)) {
		key, err := hex.DecodeString(line)
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("%s: a key is 64 hexadecimal digits on a line; openssl rand -hex 32 makes one", path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key; openssl rand -hex 32 makes one", path)
	}
	return keys, nil
}

// keeping is a store that is delivered from.
type keeping struct {
	store  store.Store
	engine *delivery.Engine
	route  func(smtp.Path) store.Destination
	stop   context.CancelFunc // ends the engine's looking
	ended  chan struct{}      // closed when it has
}

func newKeeping(cfg *config.Config, s store.Store, t *delivery.Transport, out *outbound, signer *auth.Signer, route func(smtp.Path) (string, bool), log *slog.Logger) (*keeping, error) {
	d := cfg.Delivery.Schedule
	destination := func(p smtp.Path) store.Destination {
		if backend, ok := route(p); ok {
			return delivery.BackendDestination(backend)
		}
		return outDestination(p)
	}
	e, err := delivery.NewEngine(delivery.EngineOptions{
		Queue: s.Queue(), Transport: t, Hostname: string(cfg.Hostname), Log: log,
		Lease: cfg.Delivery.Lease, KeepTime: cfg.Store.Timeout, Outbound: out.options(), DestinationWorkers: cfg.Delivery.Connections,
		Schedule: delivery.Schedule{First: d.First, Factor: float64(d.Factor), Max: d.Max, Expire: d.Expire, Notify: time.Duration(d.Notify)},
		Route:    destination, Sign: signer.Sign,
	})
	if err != nil {
		return nil, err
	}
	return &keeping{store: s, engine: e, route: destination, ended: make(chan struct{})}, nil
}

// outDestination is where mail for an address waits that no backend of ours takes.
func outDestination(p smtp.Path) store.Destination {
	return delivery.MXDestination(mx.TargetOf(p.Domain))
}

// report puts a report on TLS into the queue. What it reports must not keep it back (RFC 8460,
// Section 5.3).
//
// It is signed if there is a key for the sender's domain. Nobody is told if it cannot be delivered:
// a report about a report is of use to nobody.
func (k *keeping) report(ctx context.Context, signer *auth.Signer, m tlsrpt.Mail) error {
	fields, err := signer.Sign(ctx, m.From.Domain, notice(m.Content))
	if err != nil {
		return err
	}
	_, err = k.engine.Keep(ctx, delivery.Keeping{
		Sender:     smtp.Sender{Path: m.From},
		Origin:     store.Origin{Listener: "tlsrpt", Trusted: true, TLSOptional: true},
		Content:    notice(withFields(fields, m.Content)),
		Recipients: []delivery.KeptRecipient{{Recipient: smtp.Recipient{Path: m.To, Notify: smtp.NotifyNever}, Destination: k.route(m.To)}},
	})
	return err
}

// run begins to deliver.
func (k *keeping) run() {
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	go func() {
		defer close(k.ended)
		k.engine.Run(ctx)
	}()
}

// quiet leases nothing any more, and waits for what is being delivered.
func (k *keeping) quiet(ctx context.Context) error {
	if k.stop != nil {
		k.stop()
		<-k.ended
	}
	return k.engine.Shutdown(ctx)
}

// keepingRelay is the gateway's Relay with a store behind it.
type keepingRelay struct {
	transportRelay
	engine *delivery.Engine
}

// Keep implements gateway.Keeper.
func (r keepingRelay) Keep(ctx context.Context, k gateway.Kept) (string, error) {
	dk := delivery.Keeping{Sender: k.Sender, Held: k.Held, Content: k.Content,
		Origin: store.Origin{Listener: k.Listener, Session: k.Session, Client: k.Client, Trusted: k.Trusted}}
	for _, rcpt := range k.Recipients {
		to := delivery.BackendDestination(rcpt.Backend)
		if rcpt.Backend == "" {
			to = outDestination(rcpt.Path)
		}
		if strings.HasPrefix(rcpt.Backend, handlerPrefix) && !k.Trusted {
			// A handler refuses all but what it is for. With a recipient of another backend
			// beside it, a stranger could have whatever he likes returned to whom he likes.
			rcpt.Notify = smtp.NotifyNever
		}
		dk.Recipients = append(dk.Recipients, delivery.KeptRecipient{Recipient: rcpt.Recipient, Destination: to, Reply: rcpt.Reply, Held: rcpt.Held})
	}
	id, err := r.engine.Keep(ctx, dk)
	if err != nil {
		return "", fmt.Errorf("keep a message: %w", err)
	}
	return string(id), nil
}
