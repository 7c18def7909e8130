package message

import (
	"errors"
	"math/rand/v2"
	"mime"
	"net/mail"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestNewField(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		name, text, want string
		err              error
		why              string
	}{
		{"Subject", "hello", "Subject: hello\r\n", nil, "the plain case"},
		{"X", "", "X:\r\n", nil, "no text"},
		{"X", " \t ", "X:\r\n", nil, "white space alone is no text"},
		{"X", "  a  b\t", "X: a  b\r\n", nil, "white space within stays"},
		{"X", x(80), "X: " + x(80) + "\r\n", nil, "the first word stays beside the name as long as a line may be"},
		{"X", "a " + x(80), "X: a\r\n " + x(80) + "\r\n", nil, "a later one is folded"},
		{"X", "a\t" + x(80), "X: a\r\n\t" + x(80) + "\r\n", nil, "at a tab too"},
		{"X", x(40) + "   \t  " + x(40), "X: " + x(40) + "\r\n   \t  " + x(40) + "\r\n", nil, "never a line of white space alone"},
		{"X", x(997), "X:\r\n " + x(997) + "\r\n", nil, "998 octets are a line"},
		{"X", x(998), "", ErrFieldValue, "999 are not"},
		{"X", "a" + strings.Repeat(" ", 998) + "b", "", ErrFieldValue, "white space that does not fit a line"},
		{x(128), x(900), x(128) + ":\r\n " + x(900) + "\r\n", nil, "name and word do not fit one line"},
		{x(129), "a", "", ErrFieldName, "a long name"},
		{"", "a", "", ErrFieldName, "no name"},
		{"A B", "a", "", ErrFieldName, "space in the name"},
		{"A ", "a", "", ErrFieldName, "obsolete space is not written"},
		{"A:", "a", "", ErrFieldName, "a colon in the name"},
		{"A\r\nB", "a", "", ErrFieldName, "a line end in the name"},
		{"Ä", "a", "", ErrFieldName, "a name beyond ASCII"},
		{"X", "a\r\nB: c", "", ErrFieldValue, "a second field"},
		{"X", "a\r\n b", "", ErrFieldValue, "folding is our business"},
		{"X", "a\nb", "", ErrFieldValue, "bare LF"},
		{"X", "a\rb", "", ErrFieldValue, "bare CR"},
		{"X", "a\x00b", "", ErrFieldValue, "NUL"},
		{"X", "a\x7fb", "", ErrFieldValue, "DEL"},
		{"X", strings.Repeat("a ", 32<<10) + "a", "", ErrFieldValue, "longer than 64 KiB"},
		{"Subject", "Grüße", "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n", nil, "an encoded word"},
		{"Subject", "a ü b ä  ö c", "Subject: a =?utf-8?q?=C3=BC?= b =?utf-8?q?=C3=A4__=C3=B6?= c\r\n", nil, "neighbours and the space between them"},
		{"From", "Jörg K. <j@example.com>", "From: =?utf-8?q?J=C3=B6rg?= K. <j@example.com>\r\n", nil, "an address stays an address"},
		{"From", `"K. Jörg" <j@example.com>`, "From: =?utf-8?q?=22K=2E_J=C3=B6rg=22?= <j@example.com>\r\n", nil, "quotes do not lose their partner"},
		{"From", "j@example.com (K. Jörg), b@example.com", "From: j@example.com (=?utf-8?q?K=2E_J=C3=B6rg?=), b@example.com\r\n", nil, "a comment stays one"},
		{"X", "(a (b) \\) ü) c(ü d", "X: (=?utf-8?q?a_=28b=29_=5C=29_=C3=BC?=) =?utf-8?q?c=28=C3=BC?= d\r\n", nil, "a comment within, escaped, open"},
		{"X", `5" ü`, "X: 5\" =?utf-8?q?=C3=BC?=\r\n", nil, "a quote without a partner"},
		{"X", `"a\" ü" b`, "X: =?utf-8?q?=22a=5C=22_=C3=BC=22?= b\r\n", nil, "an escaped quote is no end"},
		{"X", "=?utf-8?q?=C3=BC?= ok", "X: =?utf-8?q?=C3=BC?= ok\r\n", nil, "encoded by the caller"},
		{"X", "a\xffb", "X: =?utf-8?q?a=EF=BF=BDb?=\r\n", nil, "broken UTF-8 is shown as such"},
		{"X", "\u0085\u2028", "X: =?utf-8?q?=C2=85=E2=80=A8?=\r\n", nil, "line ends of Unicode"},
	} {
		f, err := NewField(tt.name, tt.text)
		if !errors.Is(err, tt.err) || string(f.Raw()) != tt.want {
			t.Errorf("NewField(%.40q, %.40q) = %q, %v\nwant %q, %v: %s", tt.name, tt.text, f.Raw(), err, tt.want, tt.err, tt.why)
		}
	}
}

var encodedWord = regexp.MustCompile(`=\?utf-8\?q\?[^? ]*\?=`)

// checkNewField holds what must be true of every field that is made, for any name and
// text.
func checkNewField(t *testing.T, name, text string) {
	t.Helper()
	f, err := NewField(name, text)
	if err != nil {
		if !errors.Is(err, ErrFieldName) && !errors.Is(err, ErrFieldValue) || len(f.Raw()) != 0 {
			t.Fatalf("NewField(%q, %q) = %q, %v", name, text, f.Raw(), err)
		}
		return
	}
	raw := string(f.Raw())
	h, rest := Parse([]byte(raw + "\r\nbody"))
	if h.Len() != 1 || string(rest) != "body" || string(h.Field(0).Name()) != name || string(f.Name()) != name {
		t.Fatalf("NewField(%q, %q) = %q, which is %d fields and %q", name, text, raw, h.Len(), rest)
	}
	encoded := !isASCII(text)
	for line := range strings.SplitSeq(strings.TrimSuffix(raw, "\r\n"), "\r\n") {
		switch {
		case len(line) > 998:
			t.Fatalf("NewField(%q, %q): a line of %d octets", name, text, len(line))
		case strings.Trim(line, " \t") == "":
			t.Fatalf("NewField(%q, %q) = %q: a line of white space", name, text, raw)
		case strings.ContainsAny(line, "\r\n\x00") || !isASCII(line):
			t.Fatalf("NewField(%q, %q) = %q: a line with %q", name, text, raw, line)
		}
	}
	for _, word := range encodedWord.FindAllString(f.Text(), -1) {
		if len(word) > 75 && !strings.Contains(text, "=?") {
			t.Fatalf("NewField(%q, %q): an encoded word of %d octets", name, text, len(word))
		}
	}
	want := strings.Trim(strings.ToValidUTF8(text, "\uFFFD"), " \t")
	if got := f.Text(); !encoded && got != want {
		t.Fatalf("NewField(%q, %q): text %q", name, text, got)
	}
	if strings.Contains(text, "=?") {
		return // it would be decoded with the rest
	}
	if got, err := new(mime.WordDecoder).DecodeHeader(f.Text()); err != nil || got != want {
		t.Fatalf("NewField(%q, %q) = %q, decoded %q, %v\nwant %q", name, text, raw, got, err, want)
	}
}

func TestNewFieldProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	pieces := []string{"a", "word", " ", " ", "  ", "\t", "ü", "日本語", "😀", "\xff", `"`, "(", ")", "(é a)", `\`, "<a@b>", ",", "_", "=",
		strings.Repeat("x", 70), strings.Repeat("y", 990), strings.Repeat(" ", 400), strings.Repeat("é", 60)}
	for range 4000 {
		var b strings.Builder
		for range r.IntN(16) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		checkNewField(t, strings.Repeat("N", 1+r.IntN(128)), b.String())
	}
}

func FuzzNewFieldIsOneField(f *testing.F) {
	f.Add("Subject", "Grüße an \"alle (hier\" \xff")
	f.Add("X", "a\r\nB: c")
	f.Add("X ", strings.Repeat("ü ", 300))
	f.Fuzz(checkNewField)
}

// What we encode for an address field must stay an address for others.
func TestNewFieldAddresses(t *testing.T) {
	for _, text := range []string{
		"Jörg <j@example.com>", `"J. Müller" <j@example.com>`, "j@example.com (J. Müller)", "J. Müller <j@example.com>",
		"Ä, Ö <j@example.com>", "j@example.com (J. (Ä) Müller), b@example.com", "Ä <j@example.com>, Ö <o@example.com>", strings.Repeat("Langer Näme ", 20) + "<j@example.com>",
	} {
		f, err := NewField("From", text)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mail.ReadMessage(strings.NewReader(string(f.Raw()) + "\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.Header.AddressList("From")
		if err != nil || list[0].Address != "j@example.com" {
			t.Errorf("From of %q is %q, read as %v, %v", text, f.Raw(), list, err)
		}
	}
}

// Lines with encoded words have 76 octets at most, RFC 2047, Section 2.
func TestEncodedLines(t *testing.T) {
	for _, text := range []string{strings.Repeat("ü", 300), strings.Repeat("über ", 60), "plain " + strings.Repeat("ü", 40), strings.Repeat("😀", 50),
		strings.Repeat("(ü "+strings.Repeat("ä", 40)+") ", 9)} {
		f, err := NewField("Subject", text)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(string(f.Raw()), "\r\n") {
			if len(line) > 76 {
				t.Errorf("%.20q…: line %q of %d octets", text, line, len(line))
			}
		}
		for word := range strings.FieldsSeq(f.Text()) {
			if s, err := new(mime.WordDecoder).DecodeHeader(strings.Trim(word, "()")); err != nil || !utf8.ValidString(s) {
				t.Errorf("%q is not a whole number of characters: %v", word, err)
			}
		}
	}
}

// Text that opens groups and never closes them must not cost more than its length
// times a constant.
func TestNewFieldOpenGroups(t *testing.T) {
	text := "ü " + strings.Repeat("((\\", 300) + " " + strings.Repeat(`"( `, 20000)
	if _, err := NewField("X", text); err != nil {
		t.Fatal(err)
	}
}
