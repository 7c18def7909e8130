package parts

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/message"
)

// split cuts a message at the end of its header.
func split(raw string) (message.Header, string) {
	head, body, _ := strings.Cut(raw, "\n\n")
	if strings.Contains(raw, "\r\n\r\n") {
		head, body, _ = strings.Cut(raw, "\r\n\r\n")
	}
	h, _ := message.Parse([]byte(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n"))
	return h, body
}

// tree writes the parts of a message, a line each: what they are, and the content of leaves.
func tree(t testing.TB, raw string) string {
	t.Helper()
	h, body := split(raw)
	list, err := Scan(h, strings.NewReader(body), int64(len(body)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintf(&b, "%*s%s", 2*p.Depth, "", p.Type)
		if p.Disposition != "" {
			fmt.Fprintf(&b, " %s", p.Disposition)
		}
		if len(p.Names) > 0 {
			fmt.Fprintf(&b, " %q", p.Names)
		}
		if p.Flags != 0 {
			fmt.Fprintf(&b, " flags %#x", uint32(p.Flags))
		}
		if !p.is("multipart/") {
			r := NewReader(strings.NewReader(body), &p, nil)
			content, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<40))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " %.200q", content)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestScan: one message a case, with what readers make of it.
func TestScan(t *testing.T) {
	mixed := "Content-Type: multipart/mixed; boundary=x\n\n"
	for _, tt := range []struct{ name, raw, want string }{
		{"no MIME at all", "Subject: x\n\nhello\n", "text/plain \"hello\\n\"\n"},
		{"no body", "Subject: x\n\n", "text/plain \"\"\n"},
		{"two parts", mixed + "preamble\n--x\n\none\n--x\nContent-Type: TEXT/HTML; charset=UTF-8\n\ntwo\n--x--\nepilogue\n",
			"multipart/mixed\n  text/plain \"one\"\n  text/html \"two\"\n"},
		{"a delimiter first of all", mixed + "--x\n\none\n--x--\n", "multipart/mixed\n  text/plain \"one\"\n"},
		{"white space behind a delimiter", mixed + "--x \t\n\none\n--x-- \n", "multipart/mixed\n  text/plain \"one\"\n"},
		{"a part without header or empty line", mixed + "--x\nno field\n--x--\n", "multipart/mixed\n  text/plain flags 0x1 \"no field\"\n"},
		{"an empty part", mixed + "--x\n--x\n\n--x--\n", "multipart/mixed\n  text/plain \"\"\n  text/plain \"\"\n"},
		{"a header without a body", mixed + "--x\nContent-Type: text/html\n--x--\n", "multipart/mixed\n  text/html \"\"\n"},
		{"base64", mixed + "--x\nContent-Type: application/zip; name=a.zip\nContent-Transfer-Encoding: BASE64\n\naGVs\nbG8=\n--x--\n",
			"multipart/mixed\n  application/zip [\"a.zip\"] \"hello\"\n"},
		{"quoted-printable", "Content-Transfer-Encoding: quoted-printable\n\na=3Db=\nc  \n=zz\n", "text/plain \"a=bc\\n=zz\\n\"\n"},
		{"nested", mixed + "--x\nContent-Type: multipart/alternative; boundary=\"y\"\n\n--y\n\none\n--y\n\ntwo\n--y--\n--x\n\nthree\n--x--\n",
			"multipart/mixed\n  multipart/alternative\n    text/plain \"one\"\n    text/plain \"two\"\n  text/plain \"three\"\n"},
		{"a boundary that begins like another", "Content-Type: multipart/mixed; boundary=xy\n\n--xy\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\none\n--x--\n--xy--\n",
			"multipart/mixed\n  multipart/mixed\n    text/plain \"one\"\n"},
		{"an inner multipart that does not end", mixed + "--x\nContent-Type: multipart/mixed; boundary=y\n\n--y\n\none\n--x\n\ntwo\n--x--\n",
			"multipart/mixed\n  multipart/mixed flags 0x1\n    text/plain \"one\"\n  text/plain \"two\"\n"},
		{"a message that does not end", mixed + "--x\n\none\n", "multipart/mixed flags 0x1\n  text/plain \"one\\n\"\n"},
		{"no parts", mixed + "hello\n", "multipart/mixed flags 0x1\n"},
		{"only the end", mixed + "--x--\n", "multipart/mixed flags 0x1\n"},
		{"no boundary", "Content-Type: multipart/mixed\n\n--\n--\n", "multipart/mixed flags 0x1\n"},
		{"parts behind the end", mixed + "--x\n\none\n--x--\n--x\n\ntwo\n--x--\n", "multipart/mixed flags 0x1\n  text/plain \"one\"\n"},
		{"nearly a delimiter", mixed + "--x\n\none\n--xx\n\ntwo\n--x--\n", "multipart/mixed flags 0x1\n  text/plain \"one\\n--xx\\n\\ntwo\"\n"},
		{"a delimiter that could be a field", "Content-Type: multipart/mixed; boundary=\"a:b\"\n\n--a:b\nX: y\n--a:b\n\none\n--a:b--\n",
			"multipart/mixed\n  text/plain \"\"\n  text/plain \"one\"\n"},
		{"a message in a message", mixed + "--x\nContent-Type: message/rfc822\n\nSubject: y\nContent-Type: multipart/mixed; boundary=y\n\n--y\n\none\n--y--\n--x--\n",
			"multipart/mixed\n  message/rfc822 \"Subject: y\\nContent-Type: multipart/mixed; boundary=y\\n\\n--y\\n\\none\\n--y--\"\n    multipart/mixed\n      text/plain \"one\"\n"},
		{"a message and nothing else", "Content-Type: message/rfc822\n\nContent-Type: text/html\n\none\n", "message/rfc822 \"Content-Type: text/html\\n\\none\\n\"\n  text/html \"one\\n\"\n"},
		{"a message under an encoding", mixed + "--x\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeAoKeQ==\n--x--\n",
			"multipart/mixed\n  message/rfc822 flags 0x8 \"Subject: x\\n\\ny\"\n"},
		{"a multipart that says it is encoded", "Content-Transfer-Encoding: base64\n" + mixed + "--x\n\none\n--x--\n", "multipart/mixed\n  text/plain \"one\"\n"},
		{"a digest", "Content-Type: multipart/digest; boundary=x\n\n--x\n\nSubject: y\n\none\n--x--\n",
			"multipart/digest\n  message/rfc822 \"Subject: y\\n\\none\"\n    text/plain \"one\"\n"},
		{"two types", "Content-Type: text/html\nContent-Type: text/plain\n\n", "text/html flags 0x2 \"\"\n"},
		{"a type that is none", "Content-Type: text\n\n", "text/plain flags 0x1 \"\"\n"},
		{"no semicolon", "Content-Type: text/html charset=utf-8\n\n", "text/html flags 0x1 \"\"\n"},
		{"an unknown encoding", "Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n", "text/plain flags 0x40 \"begin 644 x\\n\"\n"},
		{"an attachment", "Content-Disposition: attachment; filename=\"a b.exe\"\nContent-Type: application/x; name=other.txt\n\n",
			"application/x attachment [\"a b.exe\" \"other.txt\"] \"\"\n"},
		{"a long line that is no field", mixed + "--x\n" + strings.Repeat("z", 10_000) + "\n--x--\n",
			"multipart/mixed\n  text/plain flags 0x1 \"" + strings.Repeat("z", 200) + "\"\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			crlf := tree(t, strings.ReplaceAll(tt.raw, "\n", "\r\n"))
			if crlf = strings.ReplaceAll(crlf, `\r`, ""); crlf != tt.want {
				t.Errorf("with CRLF: got\n%swant\n%s", crlf, tt.want)
			}
			if got := tree(t, tt.raw); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// TestNames: a file name in all the ways in which mail programs write one.
func TestNames(t *testing.T) {
	for _, tt := range []struct{ field, want, why string }{
		{`attachment; filename=a.txt`, `["a.txt"]`, "a token"},
		{`attachment; filename="a \"b\".txt"`, `["a \"b\".txt"]`, "quoted"},
		{`attachment; filename=my report (1).pdf`, `["my report (1).pdf"]`, "quotes forgotten"},
		{`attachment; filename="a.txt`, `["a.txt"]`, "a quote that does not end"},
		{`attachment ; FILENAME = a.txt ; size=3`, `["a.txt"]`, "spaces and case"},
		{`attachment; (a; comment) filename=a.txt`, `["a.txt"]`, "a comment"},
		{`attachment; filename*=UTF-8''%e2%82%ac%20rates.exe`, `["€ rates.exe"]`, "RFC 2231"},
		{`attachment; filename*=iso-8859-1'en'%A3.txt`, `["£.txt"]`, "in another charset"},
		{`attachment; filename*=nosuch''%41.txt`, `["A.txt"]`, "in none"},
		{`attachment; filename*=%41.txt`, `["A.txt"]`, "quotes of the charset forgotten"},
		{`attachment; filename*0*=UTF-8''a%20; filename*1="b"; filename*2*=%2eexe`, `["a b.exe"]`, "in pieces"},
		{`attachment; filename*1=b; filename*0=a`, `["ab"]`, "pieces in disorder"},
		{`attachment; filename*0=a; filename*2=c`, `["a"]`, "a piece is missing"},
		{`attachment; filename*0=a; filename*0=b; filename*1=c`, `["ac"] ambiguous`, "a piece twice"},
		{`attachment; filename*1=a`, `[]`, "no first piece"},
		{`attachment; filename=a.txt; filename*=UTF-8''b.exe`, `["b.exe" "a.txt"]`, "two forms that differ"},
		{`attachment; filename=a.txt; filename=b.exe`, `["a.txt" "b.exe"] ambiguous`, "twice"},
		{`attachment; filename="=?utf-8?B?ZXZpbC5leGU=?="`, `["evil.exe"]`, "RFC 2047, where it has no place"},
		{`attachment; filename="=?windows-1252?Q?caf=E9?= =?windows-1252?Q?.exe?="`, `["café.exe"]`, "two words"},
		{`attachment; filename="=?nosuch?Q?a?="`, `["=?nosuch?Q?a?="]`, "a charset that is none"},
		{"attachment; filename=\"a\x00b\xff.exe\"", `["a�b�.exe"]`, "octets that are no text"},
		{`attachment; filename=""`, `[]`, "empty"},
		{`attachment; filename`, `[]`, "no value"},
		{`attachment; =a; ;; filename=b`, `["b"]`, "no name"},
		{`attachment; filename="` + strings.Repeat("a", 5000) + `.exe"`, `["` + strings.Repeat("a", 1020) + `.exe"]`, "long: the end is kept"},
	} {
		var p Part
		h, _ := message.Parse([]byte("Content-Disposition: " + tt.field + "\r\n\r\n"))
		p.describe(h, "text/plain")
		got := fmt.Sprintf("%q", p.Names)
		if p.Flags&Ambiguous != 0 {
			got += " ambiguous"
		}
		if got != tt.want || p.Disposition != "attachment" {
			t.Errorf("%s: %.100s: got %s %s, want %s", tt.why, tt.field, p.Disposition, got, tt.want)
		}
	}
}

// TestHostile: what is endless has an end, and says so.
func TestHostile(t *testing.T) {
	scan := func(raw string) []Part {
		t.Helper()
		h, body := split(raw)
		list, err := Scan(h, strings.NewReader(body), int64(len(body)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	mixed := "Content-Type: multipart/mixed; boundary=x\r\n\r\n"
	if list := scan(mixed + strings.Repeat("--x\r\n\r\n", 100_000)); len(list) != MaxParts || list[0].Flags&Truncated == 0 {
		t.Errorf("100,000 parts: got %d, flags %#x", len(list), list[0].Flags)
	}
	if list := scan(mixed + strings.Repeat("--x\r\n\r\n", MaxParts-1) + "--x--\r\n"); len(list) != MaxParts || list[0].Flags != 0 {
		t.Errorf("as many parts as may be: got %d, flags %#x", len(list), list[0].Flags)
	}
	var deep, messages strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&deep, "Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n", i, i)
		messages.WriteString("Content-Type: message/rfc822\r\n\r\n")
	}
	for name, raw := range map[string]string{"multiparts": deep.String(), "messages": mixed + "--x\r\n" + messages.String()} {
		list := scan(raw)
		if last := list[len(list)-1]; len(list) != MaxDepth+1 || last.Depth != MaxDepth || last.Flags&Deep == 0 {
			t.Errorf("1000 %s in each other: got %d parts, the last %+v", name, len(list), last)
		}
	}
	long := mixed + "--x\r\nContent-Type: text/html\r\n" + strings.Repeat("X-Filler: "+strings.Repeat("z", 1000)+"\r\n", 1000) + "Content-Transfer-Encoding: base64\r\n\r\naGk=\r\n--x--\r\n"
	if list := scan(long); len(list) != 2 || list[1].Flags != LongHeader || list[1].Size != 4 || list[1].Type != "text/html" {
		t.Errorf("a header of a megabyte: got %+v", list[1:])
	}
	line := mixed + "--x\r\nX: " + strings.Repeat("z", 1<<20) + "\r\nContent-Type: text/html\r\n\r\nhi\r\n--x--\r\n"
	if list := scan(line); len(list) != 2 || list[1].Flags != LongHeader || list[1].Size != 2 || list[1].Type != "text/html" {
		t.Errorf("a field of a megabyte: got %+v", list[1:])
	}
	boundary := "Content-Type: multipart/mixed; boundary=" + strings.Repeat("x", maxBoundary+1) + "\r\n\r\n--x"
	if list := scan(boundary); len(list) != 1 || list[0].Flags != Broken {
		t.Errorf("a long boundary: got %+v", list)
	}
}

// Work that is refused ends the walk, and so does a body that cannot be read.
func TestStops(t *testing.T) {
	h, body := split("Content-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("line\r\n", 100_000))
	done := int64(0)
	_, err := Scan(h, strings.NewReader(body), int64(len(body)), func(n int64) bool { done += n; return done < 200<<10 })
	if err != ErrStopped || done > 300<<10 {
		t.Errorf("got %v after %d octets", err, done)
	}
	if _, err := Scan(h, strings.NewReader(body[:70_000]), int64(len(body)), nil); err != io.ErrUnexpectedEOF {
		t.Errorf("a body that is too short: got %v", err)
	}
	p := Part{Encoding: Base64, Size: int64(len(body))}
	if _, err := NewReader(strings.NewReader(body), &p, func(int64) bool { return false }).ReadAt(make([]byte, 1), 0); err != ErrStopped {
		t.Errorf("decoding: got %v", err)
	}
	if _, err := NewReader(strings.NewReader(body[:70_000]), &p, nil).Size(); err != io.ErrUnexpectedEOF {
		t.Errorf("decoding a body that is too short: got %v", err)
	}
}

// sound checks what must hold of the parts of any body.
func sound(t *testing.T, list []Part, size int64) {
	t.Helper()
	if len(list) == 0 || len(list) > MaxParts {
		t.Fatalf("%d parts", len(list))
	}
	behind := make([]int64, len(list)) // where the next part in this one may begin
	for i := range list {
		p := &list[i]
		if p.Off < 0 || p.Size < 0 || p.Off+p.Size > size {
			t.Fatalf("part %d at %d has %d octets, the body %d", i, p.Off, p.Size, size)
		}
		behind[i] = p.Off
		if i == 0 {
			continue
		}
		if p.Parent < 0 || p.Parent >= i || p.Depth != list[p.Parent].Depth+1 || p.Depth > MaxDepth {
			t.Fatalf("part %d stands in %d, depth %d", i, p.Parent, p.Depth)
		}
		if up := &list[p.Parent]; p.HeaderOff < behind[p.Parent] || p.Off < p.HeaderOff || p.Size > 0 && p.Off+p.Size > up.Off+up.Size {
			t.Fatalf("part %d, %+v, in %+v, which it should follow at %d", i, p, up, behind[p.Parent])
		}
		behind[p.Parent] = p.Off + p.Size
		for _, s := range append([]string{p.Type, p.Charset, p.Disposition, p.Transfer, p.ID}, p.Names...) {
			if s != clean(s) || len(s) > maxText*3 {
				t.Fatalf("part %d: text %q", i, s)
			}
		}
	}
}

// FuzzScan: any body has parts that lie in each other, whatever size it is read in.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		"--x\r\n\r\none\r\n--x\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--\r\n",
		"--x\nContent-Type: multipart/digest; boundary=\"x\"\n\n--x\n\n\n--x--\n--x--\nepilogue",
		"--x\r\n folded\r\n--x \r\nA: b\r\n c\r\n\n--x-- z\r\n\r\n--x--", "\n--x", "--x--", "--x\rA:b\n\n",
	} {
		f.Add(s, 5000)
	}
	h, _ := split("Content-Type: multipart/mixed; boundary=x\r\n\r\n")
	f.Fuzz(func(t *testing.T, body string, pad int) {
		if len(body) > 1<<14 {
			return
		}
		// Content that is long brings the seams of the window into the interesting places.
		body = strings.Replace(body, "one", strings.Repeat("12345678", max(0, min(pad, 10_000)/8)), 1)
		list, err := Scan(h, strings.NewReader(body), int64(len(body)), nil)
		if err != nil {
			t.Fatal(err)
		}
		sound(t, list, int64(len(body)))
		s := scanner{src: strings.NewReader(body), size: int64(len(body)), room: longLine + 1}
		if err := s.scan(h); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%+v", s.parts), fmt.Sprintf("%+v", list); got != want {
			t.Errorf("with a small window\n%s\nwith a large one\n%s", got, want)
		}
	})
}

// FuzzDescribe: any header section gives texts that are clean and short.
func FuzzDescribe(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=\"x\"; name*0*=utf-8'en'%41; name*1=\"b\\\"\"\r\nContent-Disposition: x (c (d)) ; filename=\"=?utf-8?q?=41?=\"")
	f.Add("Content-Type: a/b; =; (; x*=''; x**=; x*1*2=;\r\nContent-Transfer-Encoding: base64 (x)")
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1<<14 {
			return
		}
		h, _ := message.Parse([]byte(s + "\r\n\r\n"))
		var p Part
		p.describe(h, "text/plain")
		p.Parent = -1
		sound(t, []Part{p}, 0)
		if len(p.Names) > maxNames || !isType(p.Type) && !strings.ContainsRune(p.Type, '\uFFFD') {
			t.Errorf("%+v", p)
		}
	})
}

// slowBase64 and slowQP are the decoders in the shortest words.
func slowBase64(src []byte) []byte {
	var m mark
	var out []byte
	for _, c := range src {
		switch v := digits[c]; {
		case v < 64:
			if m.quads, m.n = m.quads<<6|uint32(v), m.n+1; m.n == 4 {
				out = append(out, byte(m.quads>>16), byte(m.quads>>8), byte(m.quads))
				m = mark{}
			}
		case v == padding:
			out = m.flush(out)
		}
	}
	return m.flush(out)
}

func slowQP(src []byte) []byte {
	var out []byte
	for len(src) > 0 {
		i := bytes.IndexByte(src, '\n') + 1
		if i == 0 {
			i = len(src)
		}
		out = qpLine(out, src[:i])
		src = src[i:]
	}
	return out
}

// FuzzDecode: read in any pieces from anywhere, content is what it is when decoded at once.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("aGVsbG8gd29ybGQh\r\n"), uint16(6000), uint32(70_000), true)
	f.Add([]byte("a=b\r\n=\r\n"), uint16(9000), uint32(1), true)
	f.Add([]byte("a=3D=\r\nb \t\r\n==41= \r\n"), uint16(5000), uint32(50_000), false)
	f.Add([]byte("=\t"), uint16(60000), uint32(48<<10), false)
	f.Add([]byte("="), uint16(60000), uint32(48<<10), false)
	f.Add([]byte("=4"), uint16(60000), uint32(48<<10), false)
	f.Add([]byte("x                         "), uint16(4000), uint32(5), false)
	f.Fuzz(func(t *testing.T, piece []byte, times uint16, off uint32, b64 bool) {
		if len(piece)*int(times) > 300<<10 {
			times = uint16(300 << 10 / len(piece))
		}
		src := bytes.Repeat(piece, int(times))
		p := Part{Size: int64(len(src)), Encoding: QuotedPrintable}
		want := slowQP(src)
		if b64 {
			p.Encoding, want = Base64, slowBase64(src)
		}
		if !b64 && longLines(src) {
			want = nil // cut somewhere: it is what it is when read in order
		}
		r := NewReader(bytes.NewReader(src), &p, nil)
		all, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<40))
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = all
		}
		if !bytes.Equal(all, want) {
			t.Fatalf("%.40q x %d: got %d octets, want %d", piece, times, len(all), len(want))
		}
		if n, err := r.Size(); err != nil || n != int64(len(want)) {
			t.Errorf("size %d, %v, want %d", n, err, len(want))
		}
		for _, at := range []int64{int64(off), 0, int64(off) / 2, int64(len(want)) - 3, int64(off) + 10} {
			buf := make([]byte, 1000)
			n, err := r.ReadAt(buf, max(at, 0))
			rest := want[min(max(at, 0), int64(len(want))):]
			if n != min(len(rest), len(buf)) || !bytes.Equal(buf[:n], rest[:n]) || (n < len(buf)) != (err == io.EOF) {
				t.Fatalf("%.40q x %d at %d: got %d octets, %v", piece, times, at, n, err)
			}
		}
	})
}

// longLines tells whether src has a line that is longer than a chunk.
func longLines(src []byte) bool {
	for line := range bytes.SplitSeq(src, []byte("\n")) {
		if len(line) > chunk/2 {
			return true
		}
	}
	return false
}

// Lines that begin like the delimiters of many parts cost no more than others: each delimiter
// here begins with those of the parts around it.
func TestPrefixes(t *testing.T) {
	boundary := strings.Repeat("a", 100)
	var body strings.Builder
	for i := range MaxDepth - 1 {
		fmt.Fprintf(&body, "--%s\r\nContent-Type: multipart/mixed; boundary=%s\r\n\r\n", boundary+strings.Repeat("a", i), boundary+strings.Repeat("a", i+1))
	}
	head := body.Len()
	for body.Len() < 256<<10 {
		body.WriteString("--" + boundary + boundary + "b\r\n")
	}
	allocs := func(body string) float64 {
		return testing.AllocsPerRun(1, func() {
			h, _ := message.Parse([]byte("Content-Type: multipart/mixed; boundary=" + boundary + "\r\n\r\n"))
			list, err := Scan(h, strings.NewReader(body), int64(len(body)), nil)
			if err != nil || len(list) != MaxDepth {
				t.Fatalf("got %d parts, error %v; want %d", len(list), err, MaxDepth)
			}
		})
	}
	if without, with := allocs(body.String()[:head]), allocs(body.String()); with > 2*without+100 {
		t.Errorf("a thousand lines more made %v allocations, without them there are %v", with, without)
	}
}
