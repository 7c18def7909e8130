package filter_test

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
)

// Parts as a handler sees them, and content that is longer than a window.
func TestParts(t *testing.T) {
	long := strings.Repeat("0123456789=\n", 20_000)
	eml := "Subject: x\nContent-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain; charset=UTF-8\n" +
		"Content-Transfer-Encoding: quoted-printable\nContent-ID: <a@b>\n\n" + long +
		"\n--x\nContent-Disposition: attachment; filename=a.exe; filename*=utf-8''b%2etxt\n\nsmall\n"
	f := filter.New("f")
	f.OnData(func(w filter.Reply, m *filter.Message) {
		var got []string
		for p := range m.Parts() {
			got = append(got, fmt.Sprint(p.Index(), p.Parent(), p.Depth(), p.Flags(), p.Type(), p.Charset(), p.Disposition(), p.Encoding(), p.ID(), p.FileName(), p.FileNames()))
		}
		want := []string{
			"0 -1 0 1multipart/mixed[]",
			"1 0 1 0text/plainutf-8quoted-printablea@b[]",
			"2 0 1 0text/plainattachmentb.txt[b.txt a.exe]",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		for p := range m.Parts() {
			if p.Index() == 0 {
				if p.Flags() != abi.PartBroken || p.Offset() != 0 || p.RawSize() != m.Body.Size() {
					t.Errorf("the message: flags %d, %d octets at %d", p.Flags(), p.RawSize(), p.Offset())
				}
				continue
			}
			testContent(t, p, strings.ReplaceAll(strings.ReplaceAll(long, "=\n", ""), "\n", "\r\n"))
			break
		}
	})
	s := filtertest.New(t, filtertest.Options{Filter: f})
	s.MailFrom("a@example.com")
	if r := s.Message(eml); r.Err != nil {
		t.Error(r.Err)
	}
}

func testContent(t *testing.T, p *filter.Part, want string) {
	t.Helper()
	c := p.Content()
	all, err := io.ReadAll(c)
	if err != nil || string(all) != want {
		t.Fatalf("content: %d octets, %v, want %d", len(all), err, len(want))
	}
	var b bytes.Buffer
	if n, err := io.Copy(&b, p.Content()); err != nil || n != int64(len(want)) || b.String() != want {
		t.Errorf("copied %d octets, %v", n, err)
	}
	buf := make([]byte, 100)
	for _, off := range []int64{150_000, 0, 70_000, int64(len(want)) - 100} {
		if n, err := c.ReadAt(buf, off); err != nil || string(buf[:n]) != want[off:off+100] {
			t.Errorf("at %d: %q, %v", off, buf[:n], err)
		}
	}
	if n, err := c.ReadAt(buf, int64(len(want))-50); n != 50 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if c.Size() != int64(len(want)) {
		t.Errorf("size %d, want %d", c.Size(), len(want))
	}
	if at, err := p.Content().Seek(-10, io.SeekEnd); at != int64(len(want))-10 || err != nil {
		t.Errorf("seek: %d, %v", at, err)
	}
	if raw, err := io.ReadAll(p.Raw()); err != nil || int64(len(raw)) != p.RawSize() || !bytes.HasPrefix(raw, []byte("0123456789=\r\n")) {
		t.Errorf("raw: %d octets, %v, want %d", len(raw), err, p.RawSize())
	}
	if h, err := io.ReadAll(p.Header()); err != nil || !bytes.HasSuffix(h, []byte("Content-ID: <a@b>\r\n\r\n")) {
		t.Errorf("header: %q, %v", h, err)
	}
}
