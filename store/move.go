package store

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// move.go: all of a store as one stream, and back into another, whatever their drivers are.
// The stream is a tar archive, so that a person can look into it:
//
//	penstock-store.json         {"format": "penstock store", "version": 1}
//	queue/ID.json, queue/ID.eml a message and its content
//	modules/HEX.wasm            a binary, named by its SHA-256
//	modules/N.json              a name, and its versions, the first first
//	files/N.json, files/N.data  a file's name, and what is in it
//	kv/N.json                   some values of filters
//
// Policies of other domains are fetched again, and nodes make themselves known.

// Moved counts what was exported, imported, or checked.
type Moved struct {
	Messages, Modules, Names, Files, Values int64
	// Octets are those of messages' contents.
	Octets int64
	// Present counts what Import left alone because it was there.
	Present int64
}

const (
	movedHead    = "penstock-store.json"
	movedFormat  = "penstock store"
	movedVersion = 1
	// maxEntry is the largest entry that is read into memory.
	maxEntry = 256 << 20
)

type movedMark struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

type movedVersions struct {
	Name     text           `json:"name"`
	Versions []movedDigests `json:"versions"`
}

type movedDigests struct {
	Digest string    `json:"digest"`
	Since  time.Time `json:"since"`
	By     text      `json:"by"`
}

type movedFile struct {
	Name text `json:"name"`
}

type movedValue struct {
	Space   text      `json:"space"`
	Key     text      `json:"key"`
	Value   []byte    `json:"value"`
	Expires time.Time `json:"expires,omitzero"`
}

// exporter writes the archive.
type exporter struct {
	ctx   context.Context
	s     Store
	tw    *tar.Writer
	now   time.Time
	moved Moved
}

// Export writes all that a store holds to w. What changes meanwhile is there as it was at some
// moment. A message that cannot be read is left out and part of the error, which is
// ErrCorrupt then; the rest is there.
func Export(ctx context.Context, s Store, w io.Writer) (Moved, error) {
	x := &exporter{ctx: ctx, s: s, tw: tar.NewWriter(w), now: time.Now()}
	if err := x.object(movedHead, movedMark{movedFormat, movedVersion}); err != nil {
		return x.moved, err
	}
	var corrupt error
	for _, part := range []func() error{x.messages, x.modules, x.files, x.values} {
		if err := part(); errors.Is(err, ErrCorrupt) {
			corrupt = errors.Join(corrupt, err)
		} else if err != nil {
			return x.moved, fmt.Errorf("store: export: %w", err)
		}
	}
	if err := x.tw.Close(); err != nil {
		return x.moved, fmt.Errorf("store: export: %w", err)
	}
	return x.moved, corrupt
}

func (x *exporter) head(name string, size int64) error {
	return x.tw.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o600, ModTime: x.now, Format: tar.FormatPAX})
}

func (x *exporter) octets(name string, data []byte) error {
	err := x.head(name, int64(len(data)))
	if err == nil {
		_, err = x.tw.Write(data)
	}
	return err
}

func (x *exporter) object(name string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return x.octets(name, append(data, '\n'))
}

func (x *exporter) messages() error {
	var failed, corrupt error
	err := x.s.Queue().List(x.ctx, Filter{}, "", func(m *Message) bool {
		err := x.message(m)
		switch {
		case errors.Is(err, ErrNotFound): // it went meanwhile
		case errors.Is(err, ErrCorrupt):
			corrupt = errors.Join(corrupt, fmt.Errorf("message %s: %w", m.ID, err))
		default:
			failed = err
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return errors.Join(err, corrupt)
}

// message writes a message. The content is looked through first: of one that is corrupt
// nothing must be written.
func (x *exporter) message(m *Message) error {
	c, err := x.s.Queue().Content(x.ctx, m.ID)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.WriteTo(io.Discard); err != nil {
		return err
	}
	if err := x.object("queue/"+string(m.ID)+".json", save(m)); err != nil {
		return err
	}
	if err := x.head("queue/"+string(m.ID)+".eml", c.Size()); err != nil {
		return err
	}
	if _, err := c.WriteTo(x.tw); err != nil {
		return fmt.Errorf("content of %s: %w", m.ID, err)
	}
	x.moved.Messages++
	x.moved.Octets += c.Size()
	return nil
}

func (x *exporter) modules() error {
	var names []string
	err := x.s.Modules().Names(x.ctx, func(v Version) bool {
		names = append(names, v.Name)
		return true
	})
	if err != nil {
		return err
	}
	done := make(map[string]bool)
	for i, name := range names {
		versions, err := x.s.Modules().Versions(x.ctx, name)
		if err != nil {
			return err
		}
		slices.Reverse(versions)
		list := movedVersions{Name: text(name)}
		for _, v := range versions {
			list.Versions = append(list.Versions, movedDigests{v.Digest, v.Since, text(v.By)})
			if done[v.Digest] {
				continue
			}
			done[v.Digest] = true
			binary, err := x.s.Modules().Get(x.ctx, v.Digest)
			if err != nil {
				return fmt.Errorf("module %s: %w", v.Digest, err)
			}
			if err := x.octets("modules/"+strings.TrimPrefix(v.Digest, "sha256:")+".wasm", binary); err != nil {
				return err
			}
			x.moved.Modules++
		}
		if err := x.object(fmt.Sprintf("modules/%d.json", i), list); err != nil {
			return err
		}
		x.moved.Names++
	}
	return nil
}

func (x *exporter) files() error {
	names, err := x.s.Files().List(x.ctx, "", true)
	if err != nil {
		return err
	}
	for i, name := range names {
		data, err := x.s.Files().Read(x.ctx, name)
		if errors.Is(err, ErrNotFound) { // a folder, or it went meanwhile
			continue
		} else if err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		err = errors.Join(x.object(fmt.Sprintf("files/%d.json", i), movedFile{text(name)}), x.octets(fmt.Sprintf("files/%d.data", i), data))
		if err != nil {
			return err
		}
		x.moved.Files++
	}
	return nil
}

// values writes the values of filters, about a megabyte to an entry.
func (x *exporter) values() error {
	var list []movedValue
	var failed error
	size, entries := 0, 0
	flush := func() error {
		entries++
		err := x.object(fmt.Sprintf("kv/%d.json", entries), list)
		x.moved.Values += int64(len(list))
		list, size = nil, 0
		return err
	}
	err := x.s.KV().Each(x.ctx, func(space, key string, value []byte, expires time.Time) bool {
		list = append(list, movedValue{text(space), text(key), value, expires})
		if size += len(space) + len(key) + len(value); size > 1<<20 {
			failed = flush()
		}
		return failed == nil
	})
	if err == nil && failed == nil && len(list) > 0 {
		failed = flush()
	}
	return errors.Join(err, failed)
}

// importer reads the archive.
type importer struct {
	ctx   context.Context
	s     Store
	tr    *tar.Reader
	moved Moved
	// next is what the entry that was read last speaks of: the following one must be its
	// content.
	next    *Message
	file    string
	pending bool
}

// Import reads what Export wrote. What is there already, by ID or by name, stays as it is, so
// that an import that was cut off can be done again.
func Import(ctx context.Context, s Store, r io.Reader) (Moved, error) {
	in := &importer{ctx: ctx, s: s, tr: tar.NewReader(r)}
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return in.moved, err
		}
		h, err := in.tr.Next()
		if err == io.EOF && !first && !in.pending {
			return in.moved, nil
		} else if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err == nil && first != (h.Name == movedHead) {
			err = errors.New("it is no export of a store")
		}
		if err == nil {
			err = in.entry(h)
		}
		if err != nil {
			name := ""
			if h != nil {
				name = h.Name + ": "
			}
			return in.moved, fmt.Errorf("store: import: %s%w", name, err)
		}
	}
}

func (in *importer) entry(h *tar.Header) error {
	folder, base := path.Split(h.Name)
	object := strings.HasSuffix(base, ".json")
	if in.pending == (object || folder == "modules/") {
		return errors.New("an entry is missing before this one")
	}
	switch {
	case h.Name == movedHead:
		return in.mark()
	case folder == "queue/" && object:
		return in.message()
	case folder == "queue/" && in.next != nil:
		return in.content(h.Size)
	case folder == "modules/" && object:
		return in.versions()
	case folder == "modules/":
		return in.module(h.Size)
	case folder == "files/" && object:
		var f movedFile
		err := in.object(&f)
		in.file, in.pending = string(f.Name), true
		return err
	case folder == "files/":
		return in.data(h.Size)
	case folder == "kv/" && object:
		return in.values()
	}
	return errors.New("what is this?")
}

// object reads an entry of JSON.
func (in *importer) object(v any) error {
	data, err := io.ReadAll(io.LimitReader(in.tr, maxEntry))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// octets reads an entry.
func (in *importer) octets(size int64) ([]byte, error) {
	if size > maxEntry {
		return nil, fmt.Errorf("%d octets are too many", size)
	}
	return io.ReadAll(in.tr)
}

func (in *importer) mark() error {
	var m movedMark
	if err := in.object(&m); err != nil {
		return err
	}
	if m != (movedMark{movedFormat, movedVersion}) {
		return fmt.Errorf("it is %q, version %d, and this program knows version %d", m.Format, m.Version, movedVersion)
	}
	return nil
}

func (in *importer) message() error {
	var m savedMessage
	if err := in.object(&m); err != nil {
		return err
	}
	next, err := m.message()
	in.next, in.pending = next, true
	return err
}

func (in *importer) content(size int64) error {
	m := in.next
	in.next, in.pending = nil, false
	if m.Size != size {
		return fmt.Errorf("the content has %d octets of %d", size, m.Size)
	}
	_, err := in.s.Queue().Message(in.ctx, m.ID)
	if err == nil {
		in.moved.Present++
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	w, err := in.s.Queue().Restore(in.ctx, m)
	if err != nil {
		return err
	}
	defer w.Abort()
	n, err := io.Copy(w, in.tr)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		_, err = w.Commit(in.ctx)
	}
	if errors.Is(err, ErrConflict) {
		in.moved.Present++
		return nil
	}
	if err == nil {
		in.moved.Messages++
		in.moved.Octets += n
	}
	return err
}

func (in *importer) module(size int64) error {
	binary, err := in.octets(size)
	if err != nil {
		return err
	}
	if _, err := in.s.Modules().Put(in.ctx, binary); err != nil {
		return err
	}
	in.moved.Modules++
	return nil
}

func (in *importer) versions() error {
	var list movedVersions
	if err := in.object(&list); err != nil {
		return err
	}
	there, err := in.s.Modules().Versions(in.ctx, string(list.Name))
	if err != nil {
		return err
	}
	// What an import that was cut off did is not done twice.
	for i, v := range list.Versions {
		if i < len(there) {
			in.moved.Present++
			continue
		}
		if _, err := in.s.Modules().Activate(in.ctx, string(list.Name), v.Digest, "*", string(v.By)); err != nil {
			return err
		}
	}
	in.moved.Names++
	return nil
}

func (in *importer) data(size int64) error {
	in.pending = false
	data, err := in.octets(size)
	if err != nil {
		return err
	}
	if _, err := in.s.Files().Read(in.ctx, in.file); err == nil {
		in.moved.Present++
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	in.moved.Files++
	return in.s.Files().Write(in.ctx, in.file, data)
}

func (in *importer) values() error {
	var list []movedValue
	if err := in.object(&list); err != nil {
		return err
	}
	for _, v := range list {
		value := v.Value
		if value == nil {
			value = []byte{}
		}
		ok, err := in.s.KV().Swap(in.ctx, string(v.Space), string(v.Key), nil, value, v.Expires, 0)
		if err != nil {
			return err
		}
		if ok {
			in.moved.Values++
		} else {
			in.moved.Present++
		}
	}
	return nil
}

// Check reads all that a store holds, and calls problem with each thing that cannot be read or
// is not what it should be. The error is of the check itself.
func Check(ctx context.Context, s Store, problem func(what string, err error)) (Moved, error) {
	var n Moved
	q := s.Queue()
	err := q.List(ctx, Filter{}, "", func(m *Message) bool {
		c, err := q.Content(ctx, m.ID)
		if errors.Is(err, ErrNotFound) { // it went meanwhile
			return true
		}
		n.Messages++
		if err == nil {
			n.Octets += c.Size()
			if _, err = c.WriteTo(io.Discard); err == nil && c.Size() != m.Size {
				err = fmt.Errorf("the content has %d octets of %d", c.Size(), m.Size)
			}
			err = errors.Join(err, c.Close())
		}
		if err != nil {
			problem("message "+string(m.ID), err)
		}
		return true
	})
	if errors.Is(err, ErrCorrupt) {
		problem("queue", err)
	} else if err != nil {
		return n, fmt.Errorf("store: check the queue: %w", err)
	}
	if err := checkModules(ctx, s.Modules(), &n, problem); err != nil {
		return n, fmt.Errorf("store: check modules: %w", err)
	}
	names, err := s.Files().List(ctx, "", true)
	if err != nil {
		return n, fmt.Errorf("store: check files: %w", err)
	}
	for _, name := range names {
		if _, err := s.Files().Read(ctx, name); err == nil {
			n.Files++
		} else if !errors.Is(err, ErrNotFound) {
			problem(fmt.Sprintf("file %q", name), err)
		}
	}
	err = s.KV().Each(ctx, func(string, string, []byte, time.Time) bool { n.Values++; return true })
	if err != nil {
		return n, fmt.Errorf("store: check values: %w", err)
	}
	return n, nil
}

func checkModules(ctx context.Context, m Modules, n *Moved, problem func(string, error)) error {
	var names []string
	if err := m.Names(ctx, func(v Version) bool { names = append(names, v.Name); return true }); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, name := range names {
		n.Names++
		versions, err := m.Versions(ctx, name)
		if err != nil {
			problem(fmt.Sprintf("versions of %q", name), err)
		}
		for _, v := range versions {
			if seen[v.Digest] {
				continue
			}
			seen[v.Digest] = true
			n.Modules++
			if err := checkModule(ctx, m, v.Digest); err != nil {
				problem("module "+v.Digest, err)
			}
		}
	}
	return nil
}

func checkModule(ctx context.Context, m Modules, digest string) error {
	binary, err := m.Get(ctx, digest)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(binary); !bytes.Equal([]byte(digest), fmt.Appendf(nil, "sha256:%x", sum)) {
		return fmt.Errorf("%w: its digest is another", ErrCorrupt)
	}
	return nil
}
