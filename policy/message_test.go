package policy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/penstock/penstock/mail/smtp"
)

var _ smtp.Content = (*Message)(nil)

// spool returns a file with content, and something else around it, as a Body.
func spool(t testing.TB, content []byte) Body {
	t.Helper()
	name := filepath.Join(t.TempDir(), "spool")
	if err := os.WriteFile(name, append(append([]byte("before"), content...), "after"...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return FileBody(f, int64(len("before")), int64(len(content)))
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// checkBody compares b with its model in every way that it can be read.
func checkBody(t *testing.T, r *rand.Rand, b Body, want []byte) {
	t.Helper()
	if b.Size() != int64(len(want)) {
		t.Fatalf("Size %d, want %d", b.Size(), len(want))
	}
	var w bytes.Buffer
	if n, err := b.WriteTo(&w); n != b.Size() || err != nil || !bytes.Equal(w.Bytes(), want) {
		t.Fatalf("WriteTo = %d, %v, wrote\n%q\nwant\n%q", n, err, w.Bytes(), want)
	}
	for range 3 {
		off, p := r.IntN(len(want)+2), make([]byte, r.IntN(len(want)+2))
		n, err := b.ReadAt(p, int64(off))
		size := min(len(p), max(len(want)-off, 0))
		if n != size || err != nil && err != io.EOF || err == nil && n < len(p) || !bytes.Equal(p[:n], want[min(off, len(want)):][:n]) {
			t.Fatalf("ReadAt(%d octets, %d) = %d, %v of %d", len(p), off, n, err, len(want))
		}
	}
}

// Splices are what they would be on plain octets, and earlier views stay as they were.
func TestSplicesAgreeWithPlainOctets(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		model := randomBytes(r, r.IntN(300))
		body := BytesBody(bytes.Clone(model))
		if seed%2 == 1 {
			body = spool(t, model)
		}
		type view struct {
			body  Body
			model []byte
		}
		var views []view
		for range 60 {
			views = append(views, view{body, model})
			from := views[r.IntN(len(views))] // any view may be edited further
			off := r.IntN(len(from.model) + 1)
			del := r.IntN(len(from.model) - off + 1)
			data := randomBytes(r, r.IntN(20))
			body = from.body.splice(int64(off), int64(del), bytes.Clone(data))
			model = append(append(bytes.Clone(from.model[:off]), data...), from.model[off+del:]...)
			if r.IntN(8) == 0 {
				other := views[r.IntN(len(views))]
				body, model = body.Concat(other.body), append(model, other.model...)
			}
			checkBody(t, r, body, model)
		}
		for _, v := range views {
			checkBody(t, r, v.body, v.model)
		}
		if err := iotest.TestReader(io.NewSectionReader(body, 0, body.Size()), model); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcatSharesNothing(t *testing.T) {
	a := BytesBody([]byte("a")).Concat(BytesBody([]byte("b"))).Concat(BytesBody([]byte("c")))
	x, y := a.Concat(BytesBody([]byte("x"))), a.Concat(BytesBody([]byte("y")))
	equal(t, "one and the other", []string{string(x.appendAll(nil)), string(y.appendAll(nil)), string(a.appendAll(nil))},
		[]string{"abcx", "abcy", "abc"})
}

func TestEmptyBodies(t *testing.T) {
	for name, b := range map[string]Body{"zero": {}, "bytes": BytesBody(nil), "file": FileBody(nil, 5, 0),
		"negative": FileBody(nil, 5, -1), "spliced": BytesBody([]byte("x")).splice(0, 1, nil), "two": Body{}.Concat(Body{})} {
		n, err := b.ReadAt(make([]byte, 1), 0)
		written, werr := b.WriteTo(io.Discard)
		if b.Size() != 0 || len(b.pieces) != 0 || n != 0 || err != io.EOF || written != 0 || werr != nil {
			t.Errorf("%s: size %d, %d pieces, ReadAt %d, %v, WriteTo %d, %v", name, b.Size(), len(b.pieces), n, err, written, werr)
		}
	}
	if _, err := (Body{}).ReadAt(nil, -1); err == nil {
		t.Error("a negative offset is no error")
	}
}

// faulty breaks the contract of io.ReaderAt or reports a fault.
type faulty struct {
	n   int
	err error
}

func (f faulty) ReadAt(p []byte, _ int64) (int, error) { return min(f.n, len(p)), f.err }

// A spool that lost octets must be an error, never a shorter message, and never wait
// for ever.
func TestBrokenSpool(t *testing.T) {
	disk := errors.New("disk on fire")
	for _, tt := range []struct {
		file faulty
		want error
		why  string
	}{
		{faulty{3, io.EOF}, io.ErrUnexpectedEOF, "cut off"},
		{faulty{0, io.EOF}, io.ErrUnexpectedEOF, "empty"},
		{faulty{3, nil}, io.ErrUnexpectedEOF, "reads less without an error"},
		{faulty{0, nil}, io.ErrUnexpectedEOF, "reads nothing without an error"},
		{faulty{3, disk}, disk, "its own error"},
		{faulty{10, io.EOF}, nil, "all of it and EOF is good"},
		{faulty{10, disk}, nil, "all of it is good"},
	} {
		b := BytesBody([]byte("ab")).Concat(FileBody(tt.file, 0, 10)).Concat(BytesBody([]byte("cd")))
		n, err := b.WriteTo(io.Discard)
		if !errors.Is(err, tt.want) || err == nil && n != 14 {
			t.Errorf("WriteTo of a file that is %s = %d, %v, want %v", tt.why, n, err, tt.want)
		}
		n2, err := b.ReadAt(make([]byte, 14), 0)
		if !errors.Is(err, tt.want) || err != nil && n2 != 2+tt.file.n {
			t.Errorf("ReadAt of a file that is %s = %d, %v, want %v", tt.why, n2, err, tt.want)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	full := errors.New("full")
	m := NewMessage([]byte(sample))
	m.Body = m.Body.Concat(spool(t, make([]byte, 100<<10)))
	for _, room := range []int{0, 10, int(m.Header.Size()), int(m.Header.Size()) + 3, int(m.Size()) - 1} {
		n, err := m.WriteTo(&narrow{room: room, err: full})
		if n != int64(room) || !errors.Is(err, full) {
			t.Errorf("WriteTo with room for %d = %d, %v", room, n, err)
		}
	}
	if n, err := m.WriteTo(io.Discard); n != m.Size() || err != nil {
		t.Errorf("WriteTo = %d, %v, want %d", n, err, m.Size())
	}
}

// narrow takes room octets.
type narrow struct {
	room int
	err  error
}

func (w *narrow) Write(p []byte) (int, error) {
	if len(p) > w.room {
		n := w.room
		w.room = 0
		return n, w.err
	}
	w.room -= len(p)
	return len(p), nil
}
