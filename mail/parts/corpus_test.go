package parts_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/jhillyerd/enmime/v2"

	"github.com/penstock/penstock/internal/corpus"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/parts"
)

// leaf is a part without parts.
type leaf struct {
	typ, name string
	content   string // decoded; of text nothing, since enmime changes its charset
}

func ours(t *testing.T, raw []byte) (out []leaf, broken bool) {
	h, body := message.Parse(raw)
	list, err := parts.Scan(h, bytes.NewReader(body), int64(len(body)), nil)
	if err != nil {
		t.Fatal(err)
	}
	inMessage := make([]bool, len(list))
	for i := range list {
		p := &list[i]
		broken = broken || p.Flags != 0
		if inMessage[i] = p.Parent >= 0 && (inMessage[p.Parent] || strings.HasPrefix(list[p.Parent].Type, "message/")); inMessage[i] || strings.HasPrefix(p.Type, "multipart/") {
			continue // enmime does not open messages in messages
		}
		content, err := io.ReadAll(io.NewSectionReader(parts.NewReader(bytes.NewReader(body), p, nil), 0, 1<<40))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, leaf{p.Type, p.Name(), string(content)})
	}
	return out, broken
}

func theirs(p *enmime.Part, out []leaf) []leaf {
	for ; p != nil; p = p.NextSibling {
		if p.FirstChild != nil {
			out = theirs(p.FirstChild, out)
			continue
		}
		out = append(out, leaf{p.ContentType, p.FileName, string(p.Content)})
	}
	return out
}

// different are messages of which we think otherwise, on purpose.
var different = map[string]string{
	"msg_33.txt": "the boundary is an extended parameter (RFC 2231), which enmime does not read",
	"testdata/mail/qp-utf8-header-no-break.raw": "the message's own header ends at a line that is no field",
}

// Real messages, and those that another reader keeps for its own tests: what has no flag is
// read alike by both.
func TestCorpus(t *testing.T) {
	compared := 0
	for _, m := range corpus.Messages(t) {
		got, broken := ours(t, m.Raw)
		root, err := enmime.ReadParts(bytes.NewReader(m.Raw))
		if broken || err != nil || different[m.Name] != "" {
			continue
		}
		compared++
		want := theirs(root, nil)
		if len(got) != len(want) {
			t.Errorf("%s %s: %d parts, want %d", m.Source, m.Name, len(got), len(want))
			continue
		}
		for i, g := range got {
			w := want[i]
			if w.typ == "" { // enmime has no default
				w.typ = g.typ
			}
			if strings.HasPrefix(g.typ, "text/") {
				g.content, w.content = "", ""
			}
			if g != w {
				t.Errorf("%s %s: part %d: got %.100q, want %.100q", m.Source, m.Name, i, g, w)
			}
		}
	}
	t.Logf("%d messages compared", compared)
	if compared < 100 {
		t.Errorf("%d messages compared, want 100 at least", compared)
	}
}
