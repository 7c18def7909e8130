package gateway

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// known.go: who knows the recipients of routes, and how that outlives the rules. New rules that
// ask for what the old ones had get the same one: the answers of backends, which cannot be
// asked again while one is down, and lists, whose files may be broken just now. A change that
// must not wait, such as the rollback of a filter, does not depend on either.

// asked is what makes two callouts one.
type asked struct {
	backend string
	CalloutOptions
}

// knowledge is what knows the recipients of rules. It is not changed once they are in use.
type knowledge struct {
	lists    map[ListOptions]*followed
	callouts map[asked]*callout
	checks   []func(ctx context.Context, p smtp.Path) error // by route; nil asks the backend
}

// knowledgeOf gets ready who knows the recipients of routes. What old has is taken over as it
// is; of a list that is new the file must be good. old may be nil.
func knowledgeOf(routes []Route, old *knowledge, relay Relay, log *slog.Logger) (*knowledge, error) {
	if old == nil {
		old = &knowledge{}
	}
	k := &knowledge{lists: make(map[ListOptions]*followed), callouts: make(map[asked]*callout),
		checks: make([]func(context.Context, smtp.Path) error, len(routes))}
	for i, r := range routes {
		switch {
		case r.Recipients.List != nil:
			l, err := k.list(*r.Recipients.List, old, log)
			if err != nil {
				k.leave()
				return nil, err
			}
			k.checks[i] = func(_ context.Context, p smtp.Path) error { return l.check(p) }
		case r.Recipients.Callout != nil:
			c := k.callout(asked{r.Backend, *r.Recipients.Callout}, old, relay)
			k.checks[i] = func(ctx context.Context, p smtp.Path) error { return c.check(ctx, r.Backend, p) }
		}
	}
	return k, nil
}

func (k *knowledge) list(o ListOptions, old *knowledge, log *slog.Logger) (*followed, error) {
	if l, ok := k.lists[o]; ok {
		return l, nil
	}
	if l, ok := old.lists[o]; ok {
		l.users.Add(1)
		k.lists[o] = l
		return l, nil
	}
	list, err := newRecipientList(recipientFile{path: o.Path, separators: o.Separators, log: log})
	if err != nil {
		return nil, err
	}
	k.lists[o] = follow(list)
	return k.lists[o], nil
}

func (k *knowledge) callout(key asked, old *knowledge, relay Relay) *callout {
	c, ok := k.callouts[key]
	if !ok {
		c, ok = old.callouts[key]
	}
	if !ok {
		c = newCallout(key.settings(), askRelay(relay), time.Now)
	}
	k.callouts[key] = c
	return c
}

// look has the lists look at their files now, and not when it is time.
func (k *knowledge) look() {
	for _, l := range k.lists {
		l.hurry()
	}
}

// leave ends the use of the lists. Nil has none.
func (k *knowledge) leave() {
	if k == nil {
		return
	}
	for _, l := range k.lists {
		l.leave()
	}
}

// followed is a list whose file is followed as long as some knowledge has the list.
type followed struct {
	*recipientList
	stop  context.CancelFunc
	done  chan struct{} // closed when nobody follows it any more
	users atomic.Int32  // knowledge that has it; who adds has one that is in use
}

// follow begins to follow a list, for one user.
func follow(l *recipientList) *followed {
	ctx, stop := context.WithCancel(context.Background())
	f := &followed{recipientList: l, stop: stop, done: make(chan struct{})}
	f.users.Store(1)
	go func() {
		defer close(f.done)
		l.run(ctx)
	}()
	return f
}

// leave ends one use, and the following with the last.
func (f *followed) leave() {
	if f.users.Add(-1) == 0 {
		f.stop()
		<-f.done
	}
}

// RecipientsState is what is known of the recipients of a backend, by something else than the
// transaction itself.
type RecipientsState struct {
	Backend string
	// Listed is how many entries its lists have.
	Listed int
	// Of callouts: the answers that were remembered, the questions that were asked, those of
	// them that had no answer, and the recipients that were taken all the same because they
	// had existed. They count from when the callout was first in the rules.
	Remembered, Asked, Failed, Stale int64
}

// Recipients returns the state of each backend whose recipients are known by a list or by
// callouts, by name. It may be called at any time.
func (g *Gateway) Recipients() []RecipientsState {
	rs := g.rules.Load()
	if rs == nil {
		return nil
	}
	var all []RecipientsState
	of := func(backend string) *RecipientsState {
		i := slices.IndexFunc(all, func(s RecipientsState) bool { return s.Backend == backend })
		if i < 0 {
			i = len(all)
			all = append(all, RecipientsState{Backend: backend})
		}
		return &all[i]
	}
	type listed struct {
		backend string
		ListOptions
	}
	seen := make(map[listed]bool)
	for _, r := range rs.Routes {
		o := r.Recipients.List
		if o == nil || seen[listed{r.Backend, *o}] {
			continue
		}
		seen[listed{r.Backend, *o}] = true
		of(r.Backend).Listed += rs.known.lists[*o].count()
	}
	for key, c := range rs.known.callouts {
		s := of(key.backend)
		s.Remembered += c.hits.Load()
		s.Asked += c.asked.Load()
		s.Failed += c.failed.Load()
		s.Stale += c.stales.Load()
	}
	slices.SortFunc(all, func(a, b RecipientsState) int { return strings.Compare(a.Backend, b.Backend) })
	return all
}
