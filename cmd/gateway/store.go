package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// store.go: the store, what delivers from it, and the gateway's way into it.

// openStore opens the store of a configuration; nil if it has none.
func openStore(cfg *config.Config, log *slog.Logger) (store.Store, error) {
	switch cfg.Store.Driver {
	case config.StoreEmbedded:
		return embedded.Open(string(cfg.Store.Path), embedded.Options{Log: log})
	case config.StorePostgres:
		return nil, errors.New("driver postgres is not there yet; use embedded")
	}
	return nil, nil
}

// keeping is a store that is delivered from.
type keeping struct {
	store  store.Store
	engine *delivery.Engine
	stop   context.CancelFunc // ends the engine's looking
	ended  chan struct{}      // closed when it has
}

func newKeeping(cfg *config.Config, t *delivery.Transport, route func(smtp.Path) (string, bool), log *slog.Logger) (*keeping, error) {
	s, err := openStore(cfg, log)
	if err != nil || s == nil {
		return nil, err
	}
	d := cfg.Delivery.Schedule
	e, err := delivery.NewEngine(delivery.EngineOptions{
		Queue: s.Queue(), Transport: t, Hostname: string(cfg.Hostname), Log: log,
		Schedule: delivery.Schedule{First: d.First, Factor: float64(d.Factor), Max: d.Max, Expire: d.Expire, Notify: time.Duration(d.Notify)},
		Route: func(p smtp.Path) store.Destination {
			if backend, ok := route(p); ok {
				return delivery.BackendDestination(backend)
			}
			return store.Destination("mx:" + p.Domain.String())
		},
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &keeping{store: s, engine: e, ended: make(chan struct{})}, nil
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
		Origin: store.Origin{Listener: k.Listener, Session: k.Session, Client: k.Client}}
	for _, rcpt := range k.Recipients {
		dk.Recipients = append(dk.Recipients, delivery.KeptRecipient{Recipient: rcpt.Recipient,
			Destination: delivery.BackendDestination(rcpt.Backend), Reply: rcpt.Reply})
	}
	id, err := r.engine.Keep(ctx, dk)
	if err != nil {
		return "", fmt.Errorf("keep a message: %w", err)
	}
	return string(id), nil
}
