package postgres

// content.go reads contents: from memory if this node has just written them, from the row of
// the message, or chunk by chunk.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

// blobGrace is how long chunks are kept that no message refers to. Whoever has them open
// renews it, in upkeep.
const blobGrace = 10 * time.Minute

// Content opens the content of a message.
func (q *queue) Content(ctx context.Context, id store.ID) (store.Content, error) {
	b, ok := id.Bytes()
	if !ok {
		return nil, store.ErrNotFound
	}
	if body, ok := q.s.kept.get(id); ok && !q.s.closed.Load() {
		return &content{size: int64(len(body)), body: body}, nil
	}
	c := &content{s: q.s}
	var check int64
	err := q.s.run(ctx, "open a content", idempotent, func(ctx context.Context, conn *pgxpool.Conn) error {
		return conn.QueryRow(ctx, "SELECT size, blob, sum, body FROM message WHERE id = $1", b).Scan(&c.size, &c.blob, &check, &c.body)
	})
	if err != nil {
		return nil, err
	}
	if sum(c.body) != check || c.blob == nil && c.size != int64(len(c.body)) {
		return nil, q.s.corrupt(id)
	}
	if c.blob != nil {
		c.id, c.body = id, nil
		q.s.open.add(*c.blob)
	}
	return c, nil
}

func (s *Store) corrupt(id store.ID) error {
	s.opt.Log.Error("the content of a message is corrupt", "msg", string(id))
	return fmt.Errorf("%w: the content of %s", store.ErrCorrupt, id)
}

// content is an open content. One in chunks holds the chunk that was read last.
type content struct {
	s    *Store
	id   store.ID
	size int64
	body []byte // all of it, if blob is nil
	blob *uuid

	mu     sync.Mutex
	n      int    // guarded by mu: the number of chunk
	chunk  []byte // guarded by mu: nil if none was read
	closed bool   // guarded by mu
}

var errContentClosed = errors.New("postgres: the content was closed")

// Size is the length.
func (c *content) Size() int64 { return c.size }

// WriteTo writes all of it.
func (c *content) WriteTo(w io.Writer) (int64, error) {
	if c.blob == nil {
		n, err := w.Write(c.body)
		return int64(n), err
	}
	var written int64
	for written < c.size {
		b, err := c.at(written)
		if err != nil {
			return written, err
		}
		n, err := w.Write(b)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// ReadAt reads some of it.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("postgres: a negative offset")
	}
	read := 0
	for read < len(p) {
		b, err := c.at(off + int64(read))
		if err != nil {
			return read, err
		}
		read += copy(p[read:], b)
	}
	return read, nil
}

// at returns what there is from an offset to the end of its chunk, or io.EOF. What it returns
// is not changed later.
func (c *content) at(off int64) ([]byte, error) {
	if off >= c.size {
		return nil, io.EOF
	}
	if c.blob == nil {
		return c.body[off:], nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errContentClosed
	}
	n := int(off / chunkSize)
	if c.chunk == nil || c.n != n {
		b, err := c.fetch(n)
		if err != nil {
			return nil, err
		}
		c.n, c.chunk = n, b
	}
	return c.chunk[off%chunkSize:], nil
}

// fetch reads a chunk. There is no context in io.ReaderAt: Options.Timeout and the end of the
// store bound it.
func (c *content) fetch(n int) ([]byte, error) {
	var data []byte
	var check int64
	err := c.s.run(c.s.life, "read a content", idempotent, func(ctx context.Context, conn *pgxpool.Conn) error {
		return conn.QueryRow(ctx, "SELECT sum, data FROM chunk WHERE blob = $1 AND n = $2", *c.blob, n).Scan(&check, &data)
	})
	want := min(chunkSize, c.size-int64(n)*chunkSize)
	if errors.Is(err, store.ErrNotFound) || err == nil && (sum(data) != check || int64(len(data)) != want) {
		return nil, c.s.corrupt(c.id)
	}
	return data, err
}

// Close must be called once; it may be called again.
func (c *content) Close() error {
	if c.blob == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed, c.chunk = true, nil
		c.s.open.remove(*c.blob)
	}
	return nil
}

// openBlobs counts who writes or reads chunks.
type openBlobs struct {
	mu sync.Mutex
	n  map[uuid]int // guarded by mu
}

func (o *openBlobs) add(id uuid) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n == nil {
		o.n = make(map[uuid]int)
	}
	o.n[id]++
}

func (o *openBlobs) remove(id uuid) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n[id]--; o.n[id] <= 0 {
		delete(o.n, id)
	}
}

func (o *openBlobs) list() []uuid {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ids []uuid
	for id := range o.n {
		ids = append(ids, id)
	}
	return ids
}

// cacheLimit bounds what a cache holds, in octets.
const cacheLimit = 64 << 20

// cache holds contents that this node has written and leased in one step, until the lease
// ends: they are sent next, and need not come back from the database for that.
type cache struct {
	mu     sync.Mutex
	octets int                     // guarded by mu
	bodies map[store.ID]cachedBody // guarded by mu
}

type cachedBody struct {
	body  []byte
	until time.Time
}

func newCache() *cache { return &cache{bodies: make(map[store.ID]cachedBody)} }

// put keeps a body, which must not be changed any more, if there is room.
func (c *cache) put(id store.ID, body []byte, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.octets+len(body) <= cacheLimit {
		c.octets += len(body)
		c.bodies[id] = cachedBody{body, until}
	}
}

func (c *cache) get(id store.ID) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.bodies[id]
	return b.body, ok && time.Now().Before(b.until)
}

func (c *cache) extend(id store.ID, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.bodies[id]; ok {
		c.bodies[id] = cachedBody{b.body, until}
	}
}

func (c *cache) remove(id store.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(id)
}

func (c *cache) removeLocked(id store.ID) {
	if b, ok := c.bodies[id]; ok {
		c.octets -= len(b.body)
		delete(c.bodies, id)
	}
}

// sweep forgets bodies whose lease is over.
func (c *cache) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, b := range c.bodies {
		if now.After(b.until) {
			c.removeLocked(id)
		}
	}
}
