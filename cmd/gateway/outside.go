package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy/errand"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store"
)

// outside.go: what filters reach beyond their sessions, as they were granted it.

// outside is what there is for the filters of a gateway. The nil outside is that of one that
// is only checked: there are secrets, and nobody answers.
type outside struct {
	log    *slog.Logger
	values errand.Values
	mail   errand.Mailer // nil without a store

	mu    sync.Mutex
	names *resolver.Resolver // guarded by mu; nil until a filter needs it
}

// newOutside returns what there is with a store, or with none, which is nil.
func newOutside(s store.Store, mail errand.Mailer, log *slog.Logger) *outside {
	if s == nil {
		return &outside{log: log, values: new(errand.Memory)}
	}
	return &outside{log: log, values: s.KV(), mail: mail}
}

// close ends look-ups. Nothing is looked up any more.
func (o *outside) close() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names != nil {
		o.names.Close()
	}
}

// resolver returns who looks up names for filters. It is not the one for names of clients:
// neither must use up what the other needs.
func (o *outside) resolver(cfg *config.Config) (resolver.DNS, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names == nil {
		ro, err := resolverOptions(cfg, o.log)
		if err != nil {
			return nil, err
		}
		ro.Inflight = 2000 // each filter has a share of these, see package errand
		r, err := resolver.New(ro)
		if err != nil {
			return nil, err
		}
		o.names = r
	}
	return o.names, nil
}

// runner is who runs the errands of a filter.
func (o *outside) runner(cfg *config.Config, f config.Filter) (*errand.Runner, error) {
	eo := errand.Options{Name: f.Name, Grants: grantsOf(f.Grant), Hostname: string(cfg.Hostname), Secrets: make(map[string]string)}
	for _, name := range f.Grant.Secret {
		value, err := readSecret(cfg.Filters.Secrets[name])
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		eo.Secrets[name] = value
	}
	if o != nil {
		eo.Values, eo.Mail = o.values, o.mail
		if f.Grant.DNS.Given || f.Grant.HTTP.Given {
			names, err := o.resolver(cfg)
			if err != nil {
				return nil, err
			}
			eo.Names = names
		}
	}
	return errand.New(eo), nil
}

// maxSecret is the most octets of a secret.
const maxSecret = 64 << 10

// readSecret reads a secret, without the line end behind it. Errors do not repeat it.
func readSecret(s config.SecretSource) (string, error) {
	if s.Env != "" {
		value, ok := os.LookupEnv(s.Env)
		if !ok || value == "" {
			return "", fmt.Errorf("the variable %s is not set", s.Env)
		}
		return value, nil
	}
	b, err := readRegular(string(s.File), maxSecret)
	if err != nil {
		return "", err
	}
	value := strings.TrimRight(string(b), "\r\n")
	if value == "" {
		return "", fmt.Errorf("%s is empty", s.File)
	}
	return value, nil
}

// notices puts notifications of filters into the queue. It is an errand.Mailer.
type notices struct {
	// keeping is there before the first session.
	keeping func() *keeping
	// backend is where the mail of a recipient goes that a stranger may write to.
	backend func(smtp.Path) (string, bool)
}

// Mail implements errand.Mailer.
func (n notices) Mail(ctx context.Context, filter string, to smtp.Path, content []byte) error {
	backend, ok := n.backend(to)
	if !ok {
		return fmt.Errorf("%w: no route for <%s>", guest.ErrNotFound, to)
	}
	_, err := n.keeping().engine.Keep(ctx, delivery.Keeping{
		Origin:     store.Origin{Listener: "filter:" + filter},
		Content:    notice(content),
		Recipients: []delivery.KeptRecipient{{Recipient: smtp.Recipient{Path: to}, Destination: delivery.BackendDestination(backend)}},
	})
	return err
}

// notice is the content of a notification.
type notice []byte

// WriteTo implements smtp.Content.
func (n notice) WriteTo(w io.Writer) (int64, error) { return bytes.NewReader(n).WriteTo(w) }

// Size implements smtp.Content.
func (n notice) Size() int64 { return int64(len(n)) }
