package filter_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
)

// withBody runs a handler on a message with the body.
func withBody(t *testing.T, body string, handle func(b *filter.Body)) filtertest.Delivery {
	t.Helper()
	f := filter.New("test")
	f.OnData(func(_ filter.Reply, m *filter.Message) { handle(m.Body) })
	d := filtertest.Deliver(t, filtertest.Options{Filter: f}, filtertest.Envelope{To: []string{"b@example.org"}}, "A: b\r\n\r\n"+body)
	if err := d.Step(policy.StageMessage).Err; err != nil {
		t.Error(err)
	}
	return d
}

// numbers is a text in which every part is different.
func numbers(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return string(b)
}

// TestBodyReads has sizes around the window of 64 KiB.
func TestBodyReads(t *testing.T) {
	const w = 64 << 10
	for _, size := range []int{0, 1, w - 1, w, w + 1, 3*w + 7} {
		body := numbers(size)
		withBody(t, body, func(b *filter.Body) {
			if err := iotest.TestReader(b, []byte(body)); err != nil {
				t.Errorf("%d octets: %v", size, err)
			}
			for _, off := range []int{0, size / 2, max(0, size-10)} {
				if _, err := b.Seek(int64(off), io.SeekStart); err != nil {
					t.Error(err)
				}
				var out bytes.Buffer
				if n, err := io.Copy(&out, b); err != nil || n != int64(size-off) || out.String() != body[off:] {
					t.Errorf("%d octets: copy from %d: got %d octets, %v", size, off, n, err)
				}
			}
		})
	}
}

func TestBodyEdits(t *testing.T) {
	long := numbers(100 << 10)
	tests := []struct {
		name, body string
		edit       func(b *filter.Body) error
		want       string
	}{
		{"splice", "hello world", func(b *filter.Body) error { return b.Splice(6, 5, []byte("there")) }, "hello there"},
		{"append", long, func(b *filter.Body) error { return b.Append([]byte("end")) }, long + "end"},
		{"replace", long, func(b *filter.Body) error { return b.Replace([]byte("x")) }, "x"},
		{"replace nothing", "", func(b *filter.Body) error { return b.Replace([]byte("x")) }, "x"},
		{"read, edit, read", "abc", func(b *filter.Body) error {
			one := make([]byte, 1)
			_, err := b.Read(one)
			err = errors.Join(err, b.Splice(0, 1, []byte(long)))
			rest, err2 := io.ReadAll(b)
			if string(rest) != (long + "bc")[1:] { // on at the same offset
				t.Errorf("read on behind an edit: got %d octets", len(rest))
			}
			return errors.Join(err, err2)
		}, long + "bc"},
		{"write anew from the old", "abc", func(b *filter.Body) error {
			w, err := b.NewWriter()
			if err != nil {
				return err
			}
			_, err = io.Copy(w, io.MultiReader(strings.NewReader("<"), b, strings.NewReader(">")))
			return errors.Join(err, w.Close())
		}, "<abc>"},
	}
	for _, tt := range tests {
		d := withBody(t, tt.body, func(b *filter.Body) {
			if err := tt.edit(b); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if b.Size() != int64(len(tt.want)) {
				t.Errorf("%s: size %d, want %d", tt.name, b.Size(), len(tt.want))
			}
		})
		if want := "A: b\r\n\r\n" + tt.want; d.Message != want {
			t.Errorf("%s: got %.40q (%d octets), want %.40q (%d)", tt.name, d.Message, len(d.Message), want, len(want))
		}
	}
}

func TestBodyErrors(t *testing.T) {
	withBody(t, "abc", func(b *filter.Body) {
		if err := b.Splice(2, 2, nil); !errors.Is(err, abi.ENOENT) {
			t.Errorf("splice beyond the end: got %v, want ENOENT", err)
		}
		if err := b.Append(make([]byte, 2<<20)); !errors.Is(err, abi.ELIMIT) {
			t.Errorf("a body that grows too much: got %v, want ELIMIT", err)
		}
		if _, err := b.Seek(-1, io.SeekStart); err == nil {
			t.Error("seek before the start: want an error")
		}
		if _, err := b.Seek(0, 9); err == nil {
			t.Error("seek from nowhere: want an error")
		}
		if _, err := b.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("read before the start: want an error")
		}
		if n, err := b.ReadAt(make([]byte, 5), 1); n != 2 || err != io.EOF {
			t.Errorf("read across the end: got %d, %v; want 2, EOF", n, err)
		}
	})
}
