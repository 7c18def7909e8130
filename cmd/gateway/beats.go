package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/store"
)

// beats.go: nodes that share a store tell each other that they live.

// beatEvery is how often a node tells that it lives, and one that has not been heard of for
// nodeGone is not listed any more.
const (
	beatEvery = 5 * time.Second
	nodeGone  = time.Minute
)

// beats tells the others that we live, and knows which of them do. Who asks for them does not wait
// for the store, which may be what is wrong.
type beats struct {
	name    string
	info    []byte
	cluster store.Cluster
	log     *slog.Logger
	known   atomic.Pointer[[]api.Node]
}

// nodeInfo is what a node says of itself.
type nodeInfo struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

func newBeats(c store.Cluster, started time.Time, log *slog.Logger) *beats {
	var id [4]byte
	_, _ = rand.Read(id[:])    // never fails
	host, err := os.Hostname() // is for people; the ID makes the name unique
	if err != nil || host == "" {
		host = "node"
	}
	info, _ := json.Marshal(nodeInfo{versionText(), started.UTC()}) // cannot fail
	return &beats{name: host + "-" + hex.EncodeToString(id[:]), info: info, cluster: c, log: log}
}

// run tells it until ctx ends.
func (b *beats) run(ctx context.Context) {
	every := time.NewTicker(beatEvery)
	defer every.Stop()
	failed := false
	for {
		err := b.once(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			b.log.Warn("other nodes are not told that this one lives; trying again", "err", err)
		}
		failed = err != nil
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *beats) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatEvery)
	defer cancel()
	if err := b.cluster.Beat(ctx, b.name, b.info); err != nil {
		return err
	}
	all, err := b.cluster.Nodes(ctx, time.Now().Add(-24*time.Hour))
	if err != nil {
		return err
	}
	known := lately(all, b.name)
	b.known.Store(&known)
	return nil
}

// lately are the nodes that were heard of lately. That is by the clock of the store, which says
// when it heard of us: ours may be off.
func lately(all []store.Node, self string) []api.Node {
	var now time.Time
	for _, n := range all {
		if n.Name == self {
			now = n.Seen
		}
	}
	list := []api.Node{}
	for _, n := range all {
		if n.Seen.Before(now.Add(-nodeGone)) {
			continue
		}
		var info nodeInfo
		_ = json.Unmarshal(n.Info, &info) // another version may say other things
		list = append(list, api.Node{Name: printable(n.Name), Self: n.Name == self, Version: cmp.Or(printable(info.Version), "?"),
			Started: info.Started, Seen: n.Seen.UTC()})
	}
	return list
}

// nodes are those that were heard of when the store answered last.
func (b *beats) nodes() []api.Node {
	if b != nil {
		if known := b.known.Load(); known != nil {
			return *known
		}
	}
	return []api.Node{}
}
