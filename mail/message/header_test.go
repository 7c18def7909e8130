package message

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// fields lists a header as name=text, which is easier to compare than bytes.
func fields(h Header) []string {
	var list []string
	for i := range h.Len() {
		f := h.Field(i)
		list = append(list, string(f.Name())+"="+f.Text())
	}
	return list
}

var parseTests = []struct {
	in     string
	fields string // of fields, joined by "|"
	end    string
	rest   string
	why    string
}{
	{"", "", "", "", "nothing"},
	{"\r\nbody", "", "\r\n", "body", "a section without fields"},
	{"A: b\r\n\r\nbody", "A=b", "\r\n", "body", "the plain case"},
	{"A: b\r\nC: d\r\n\r\n", "A=b|C=d", "\r\n", "", "no body"},
	{"A: b\r\nC: d\r\n", "A=b|C=d", "", "", "no empty line"},
	{"A: b\r\nC: d", "A=b|C=d", "", "", "no line end"},
	{"A: b\r", "A=b", "", "", "half a line end"},
	{"A: b\r\nhello\r\n\r\nworld", "A=b", "", "hello\r\n\r\nworld", "a line that is no field ends the section"},
	{"A: b\r\nhello", "A=b", "", "hello", "the same without a line end"},
	{"A: b\r\n\r", "A=b", "", "\r", "half an empty line"},
	{"hello world\r\n", "", "", "hello world\r\n", "body only"},
	{"no line end", "", "", "no line end", "body only"},
	{"From a@b Mon Jan  1 00:00:00 2024\r\nA: b\r\n\r\n", "", "", "From a@b Mon Jan  1 00:00:00 2024\r\nA: b\r\n\r\n", "a mailbox line is no field: space inside the name"},
	{" A: b\r\n\r\n", "", "", " A: b\r\n\r\n", "nothing is there to be continued"},
	{" : b\r\n\r\n", "", "", " : b\r\n\r\n", "a name of white space is none"},
	{"\t:\r\n", "", "", "\t:\r\n", "nor is a tab"},
	{": b\r\n", "", "", ": b\r\n", "an empty name"},
	{"A : b\r\n\r\n", "A=b", "\r\n", "", "obsolete space before the colon, RFC 5322, Section 4.5"},
	{"A \t : b : c\r\n\r\n", "A=b : c", "\r\n", "", "and more of it"},
	{"A b: c\r\n\r\n", "", "", "A b: c\r\n\r\n", "space inside a name"},
	{"A: b\r\n c\r\n\td\r\n\r\n", "A=b c\td", "\r\n", "", "folded"},
	{"A:\r\n \r\n\t\r\nB: c\r\n\r\n", "A=|B=c", "\r\n", "", "folded with white space alone, RFC 5322, Section 4.2"},
	{"A: b\r\n \r\n\r\nx", "A=b", "\r\n", "x", "such a line is no empty line"},
	{"A: b\r\n c", "A=b c", "", "", "a continuation without line end"},
	{"A:b\r\nB:\r\n\r\n", "A=b|B=", "\r\n", "", "no space, no value"},
	{"A: b\nC: d\n\nbody", "A=b|C=d", "", "\nbody", "bare LF ends a line; an empty line has CRLF"},
	{"A: b\n c\nD: e\r\n\r\n", "A=b c|D=e", "\r\n", "", "folded with a bare LF"},
	{"A: b\rC: d\r\n\r\n", "A=b\rC: d", "\r\n", "", "a bare CR does not end a line"},
	{"N\x00: b\r\n\r\n", "", "", "N\x00: b\r\n\r\n", "NUL in a name"},
	{"Ä: b\r\n\r\n", "", "", "Ä: b\r\n\r\n", "names are ASCII, RFC 6532 too"},
	{"A: ä\x00\xff\r\n\r\n", "A=ä\x00\xff", "\r\n", "", "values are whatever came"},
	{"A: \u00a0b\u00a0\r\n\r\n", "A=\u00a0b\u00a0", "\r\n", "", "a no-break space is no white space here"},
}

func TestParse(t *testing.T) {
	for _, tt := range parseTests {
		h, rest := Parse([]byte(tt.in))
		if got := strings.Join(fields(h), "|"); got != tt.fields || string(h.end) != tt.end || string(rest) != tt.rest {
			t.Errorf("Parse(%q) = %q, end %q, rest %q\nwant %q, %q, %q: %s",
				tt.in, got, h.end, rest, tt.fields, tt.end, tt.rest, tt.why)
		}
		checkSection(t, []byte(tt.in))
	}
}

func TestParseHugeFields(t *testing.T) {
	for _, in := range []string{
		"A: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"A: b" + strings.Repeat("\r\n c", 1<<18) + "\r\n\r\n",
		strings.Repeat("a", 1<<20) + ": b\r\n\r\n",
	} {
		h, rest := Parse([]byte(in))
		if n, ok := End([]byte(in)); h.Len() != 1 || len(rest) != 0 || n != len(in) || !ok {
			t.Errorf("%.10q… of %d octets: %d fields, rest %.20q, End %d, %t", in, len(in), h.Len(), rest, n, ok)
		}
		if got := h.AppendTo(nil); string(got) != in {
			t.Errorf("%.10q… did not come out as it went in", in)
		}
	}
}

// checkSection holds what must be true of any octets: nothing is lost, and however the
// octets come in, the end of the section is found where Parse finds it, once and for
// all.
func checkSection(t *testing.T, b []byte) {
	t.Helper()
	h, rest := Parse(b)
	if got := append(h.AppendTo(nil), rest...); !bytes.Equal(got, b) {
		t.Fatalf("Parse(%q): the parts make %q", b, got)
	}
	if h.Size() != int64(len(b)-len(rest)) {
		t.Fatalf("Parse(%q): Size %d, want %d", b, h.Size(), len(b)-len(rest))
	}
	for i := range h.Len() {
		f := h.Field(i)
		if len(f.Name()) == 0 || !bytes.HasPrefix(f.Raw(), f.Name()) || bytes.ContainsAny(f.Name(), ": \t\r\n") {
			t.Fatalf("Parse(%q): field %d has the name %q", b, i, f.Name())
		}
		if strings.Contains(f.Text(), "\n") {
			t.Fatalf("Parse(%q): text of field %d is not unfolded: %q", b, i, f.Text())
		}
	}
	var finder EndFinder
	for cut := 0; cut <= len(b); cut++ {
		n, ok := End(b[:cut])
		if m, again := finder.End(b[:cut]); m != n || again != ok {
			t.Fatalf("%q: EndFinder says %d, %t, End %d, %t", b[:cut], m, again, n, ok)
		}
		if ok && int64(n) != h.Size() {
			t.Fatalf("%q of %q: End = %d, want %d", b[:cut], b, n, h.Size())
		}
		if ok {
			alone, rest := Parse(b[:n])
			if len(rest) != 0 || alone.Len() != h.Len() || !bytes.Equal(alone.AppendTo(nil), b[:n]) {
				t.Fatalf("Parse(%q): %d fields, rest %q; want %d fields", b[:n], alone.Len(), rest, h.Len())
			}
		}
	}
	if n, ok := End(append(bytes.Clone(b), "\r\n.\r\n"...)); !ok || len(rest) > 2 && int64(n) != h.Size() {
		t.Fatalf("%q and a line that is no field: End = %d, %t, want %d", b, n, ok, h.Size())
	}
}

// randomSection is made of the pieces that matter.
func randomSection(r *rand.Rand) []byte {
	pieces := []string{"A: b", "Received: x", "A", ":", " ", "\t", "\r\n", "\r\n", "\r\n", "\n", "\r", "From x", "ä", "\x00", "c"}
	var b []byte
	for range r.IntN(12) {
		b = append(b, pieces[r.IntN(len(pieces))]...)
	}
	return b
}

func TestSectionProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		checkSection(t, randomSection(r))
	}
}

func FuzzSection(f *testing.F) {
	for _, tt := range parseTests {
		f.Add([]byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1<<8 { // it is looked at as often as it has octets
			checkSection(t, b)
			checkEdited(t, b)
		}
	})
}

// checkEdited holds that an edit changes one field and nothing else, whatever the
// section was before.
func checkEdited(t *testing.T, b []byte) {
	t.Helper()
	h, rest := Parse(b)
	before := fields(h)
	f, err := NewField("X-New", "yes")
	if err != nil {
		t.Fatal(err)
	}
	reparse := func(what string, e Header, want []string) {
		whole := append(e.AppendTo(nil), rest...)
		got, body := Parse(whole)
		if fmt.Sprint(fields(got)) != fmt.Sprint(want) || !bytes.Equal(body, rest) {
			t.Fatalf("%s in %q makes %q: fields %q, body %q\nwant %q, %q", what, b, whole, fields(got), body, want, rest)
		}
		if n, ok := End(whole); !ok || int64(n) != e.Size() {
			t.Fatalf("%s in %q makes %q: End %d, %t, want %d", what, b, whole, n, ok, e.Size())
		}
	}
	for i := 0; i <= h.Len(); i++ {
		want := append(append(append([]string(nil), before[:i]...), "X-New=yes"), before[i:]...)
		reparse(fmt.Sprint("Insert at ", i), h.Insert(i, f), want)
	}
	for i := range h.Len() {
		want := append([]string(nil), before...)
		want[i] = "X-New=yes"
		reparse(fmt.Sprint("Replace ", i), h.Replace(i, f), want)
		reparse(fmt.Sprint("Delete ", i), h.Delete(i), append(append([]string(nil), before[:i]...), before[i+1:]...))
	}
	if got := fields(h); fmt.Sprint(got) != fmt.Sprint(before) || !bytes.Equal(append(h.AppendTo(nil), rest...), b) {
		t.Fatalf("edits changed the header they began with: %q, want %q", got, before)
	}
}

func TestEditProperties(t *testing.T) {
	for _, tt := range parseTests {
		checkEdited(t, []byte(tt.in))
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		checkEdited(t, randomSection(r))
	}
}

func TestEditKeepsBytes(t *testing.T) {
	in := "rEceived :  by x\r\n\tand y ; z\r\nSUBJECT:a\r\n\r\n"
	h, _ := Parse([]byte(in))
	f, _ := NewField("X", "1")
	if got, want := string(h.Insert(0, f).AppendTo(nil)), "X: 1\r\n"+in; got != want {
		t.Errorf("Insert: %q, want %q", got, want)
	}
	if got, want := string(h.Insert(99, f).Insert(-9, f).AppendTo(nil)), "X: 1\r\n"+in[:len(in)-2]+"X: 1\r\n\r\n"; got != want {
		t.Errorf("Insert beyond the ends: %q, want %q", got, want)
	}
	if got := string(h.Insert(1, f).Delete(1).AppendTo(nil)); got != in {
		t.Errorf("Insert and Delete: %q, want %q", got, in)
	}
	other, _ := Parse([]byte("Y: 2"))
	if got, want := string(h.Insert(0, other.Field(0)).AppendTo(nil)), "Y: 2\r\n"+in; got != want {
		t.Errorf("Insert of a field without line end: %q, want %q", got, want)
	}
}

func TestLookUp(t *testing.T) {
	h, _ := Parse([]byte("To: a\r\nSubject : one\r\ntO: b\r\nTop: c\r\n\r\n"))
	for _, tt := range []struct {
		name  string
		from  int
		find  int
		count int
		get   string
		why   string
	}{
		{"to", 0, 0, 2, "a", "the first"},
		{"TO", 1, 2, 2, "a", "any case, from an index"},
		{"To", -5, 0, 2, "a", "a negative index is the top"},
		{"To", 9, -1, 2, "a", "an index beyond the end"},
		{"Subject", 0, 1, 1, "one", "obsolete space is not of the name"},
		{"Subject ", 0, -1, 0, "", "nor of a name that is looked for"},
		{"T", 0, -1, 0, "", "a prefix"},
		{"", 0, -1, 0, "", "no name"},
	} {
		if got := h.Find(tt.name, tt.from); got != tt.find {
			t.Errorf("Find(%q, %d) = %d, want %d: %s", tt.name, tt.from, got, tt.find, tt.why)
		}
		if got := h.Count(tt.name); got != tt.count {
			t.Errorf("Count(%q) = %d, want %d", tt.name, got, tt.count)
		}
		if got := h.Get(tt.name); got != tt.get {
			t.Errorf("Get(%q) = %q, want %q", tt.name, got, tt.get)
		}
	}
}

func TestZeroValues(t *testing.T) {
	var f Field
	if len(f.Raw())+len(f.Name())+len(f.Value())+len(f.Text()) != 0 || f.Is("A") {
		t.Errorf("zero Field: %q %q %q %q", f.Raw(), f.Name(), f.Value(), f.Text())
	}
	var h Header
	if h.Len() != 0 || h.Size() != 0 || h.Find("A", 0) != -1 || h.Get("A") != "" || len(h.AppendTo(nil)) != 0 {
		t.Errorf("zero Header is not empty")
	}
}

// To append to what a Field gives must not write into its neighbour.
func TestFieldSlicesAreClipped(t *testing.T) {
	in := "A: b\r\nC: d\r\n\r\nbody"
	buf := []byte(in)
	h, _ := Parse(buf)
	made, _ := NewField("X", "y")
	for _, f := range []Field{h.Field(0), h.Field(1), made, Received{}.Field()} {
		was := string(f.Raw())
		_ = append(f.Raw(), "!!!!"...)
		_ = append(f.Name(), "!!!!"...)
		_ = append(f.Value(), "!!!!"...)
		if string(f.Raw()) != was {
			t.Errorf("field %q became %q", was, f.Raw())
		}
	}
	_ = append(h.AppendTo(nil), "!!"...)
	if string(buf) != in {
		t.Errorf("the message became %q, was %q", buf, in)
	}
}

func TestWriteTo(t *testing.T) {
	in := "A: b\r\nC: d\r\n\r\n"
	h, _ := Parse([]byte(in))
	var b bytes.Buffer
	if n, err := h.WriteTo(&b); n != int64(len(in)) || err != nil || b.String() != in {
		t.Errorf("WriteTo = %d, %v, wrote %q, want %q", n, err, b.String(), in)
	}
}
