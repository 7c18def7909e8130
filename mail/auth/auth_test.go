package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
)

func TestMain(m *testing.M) { leak.Main(m) }

// text is a content that is written in pieces of step octets; 0 is at once.
type text struct {
	s    string
	step int
}

func (c text) Size() int64 { return int64(len(c.s)) }

func (c text) WriteTo(w io.Writer) (int64, error) {
	step := c.step
	if step == 0 {
		step = max(len(c.s), 1)
	}
	var n int64
	for s := c.s; s != ""; {
		k := min(step, len(s))
		m, err := io.WriteString(w, s[:k])
		n += int64(m)
		if err != nil {
			return n, err
		}
		s = s[k:]
	}
	return n, nil
}

func domain(t testing.TB, s string) smtp.Domain {
	t.Helper()
	d, err := smtp.ParseDomain(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// world has two keys for example.com, whose records it knows.
type world struct {
	signer  *Signer
	records map[string]string
}

func newWorld(t testing.TB) world {
	t.Helper()
	w := world{records: make(map[string]string)}
	var keys []Key
	for _, typ := range []KeyType{RSA, Ed25519} {
		_, text, err := NewKey(typ)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ParseKey(append([]byte("hello\n"), text...))
		if err != nil {
			t.Fatal(err)
		}
		record, err := Record(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		w.records[string(typ)+"._domainkey.example.com"] = record
		keys = append(keys, Key{domain(t, "example.com"), string(typ), key})
	}
	var err error
	if w.signer, err = NewSigner(keys); err != nil {
		t.Fatal(err)
	}
	return w
}

// verify returns how many signatures a message has, and how many of them are good.
func (w world) verify(t testing.TB, content string) (all, good int) {
	t.Helper()
	list, err := dkim.VerifyWithOptions(strings.NewReader(content), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if r, ok := w.records[name]; ok {
			return []string{r}, nil
		}
		return nil, errors.New("no such name")
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if v.Err == nil {
			good++
		}
	}
	return len(list), good
}

func (w world) sign(t testing.TB, from string, c text) string {
	t.Helper()
	fields, err := w.signer.Sign(t.Context(), domain(t, from), c)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range fields {
		b.Write(f.Raw())
	}
	return b.String() + c.s
}

const mail = "Received: from x\r\nFrom: Ann <ann@example.com>\r\nTo: bob@example.org\r\nSubject: a long\r\n  subject\r\nDate : Thu, 26 Nov 2026 22:00:00 +0000\r\n" +
	"Message-ID: <1@example.com>\r\nList-Id: <x.example.com>\r\n\r\nHello  Bob,\r\n.\r\n\r\n\r\n"

// TestSign: each key makes a signature that a verifier takes, however the content is cut, and
// on the way the message may be changed as servers do it, and not otherwise.
func TestSign(t *testing.T) {
	w := newWorld(t)
	for _, step := range []int{0, 1, 7} {
		signed := w.sign(t, "example.com", text{mail, step})
		if all, good := w.verify(t, signed); all != 2 || good != 2 {
			t.Fatalf("pieces of %d: %d signatures, %d good:\n%s", step, all, good, signed)
		}
		for line := range strings.SplitSeq(signed, "\r\n") {
			if len(line) > 100 {
				t.Errorf("line of %d octets: %q", len(line), line)
			}
		}
	}
	signed := w.sign(t, "example.com", text{mail, 0})
	for _, c := range []struct {
		what, old, new string
		good           int
	}{
		{"space in the body", "Hello  Bob,", "Hello Bob, ", 2},
		{"folded otherwise", "a long\r\n  subject", "a\r\n\tlong subject", 2},
		{"a trace field more", "Received: from x", "Received: from y\r\nReceived: from x", 2},
		{"body", "Hello", "Jello", 0},
		{"more behind", "\r\n.\r\n", "\r\n.\r\nmore\r\n", 0},
		{"subject", "a long", "a short", 0},
		{"a second From", "\r\nFrom: Ann", "\r\nFrom: Eve <eve@example.com>\r\nFrom: Ann", 0},
		{"a second Subject", "\r\nFrom: Ann", "\r\nSubject: free money\r\nFrom: Ann", 0},
		{"an address for answers", "\r\nFrom: Ann", "\r\nReply-To: eve@example.org\r\nFrom: Ann", 0},
		{"read as HTML", "\r\nFrom: Ann", "\r\nContent-Type: text/html\r\nFrom: Ann", 0},
		{"a Sender, by a list", "\r\nFrom: Ann", "\r\nSender: list@example.org\r\nFrom: Ann", 2},
		{"another list", "<x.example.com>", "<y.example.com>", 0},
	} {
		if !strings.Contains(signed, c.old) {
			t.Fatal(c.what)
		}
		if _, good := w.verify(t, strings.Replace(signed, c.old, c.new, 1)); good != c.good {
			t.Errorf("%s: %d good signatures, want %d", c.what, good, c.good)
		}
	}
	if strings.Contains(signed, "l=") && strings.Contains(signed, "; l=") {
		t.Error("a part of the body alone is signed")
	}
}

func TestSignWhose(t *testing.T) {
	w := newWorld(t)
	for from, want := range map[string]int{"example.com": 2, "mx1.example.com": 2, "example.org": 0, "notexample.com": 0, "com": 0, "[192.0.2.1]": 0} {
		if got := strings.Count(w.sign(t, from, text{mail, 0}), "DKIM-Signature:"); got != want {
			t.Errorf("%s: %d signatures, want %d", from, got, want)
		}
	}
	if fields, err := new(Signer).Sign(t.Context(), domain(t, "example.com"), text{mail, 0}); err != nil || len(fields) > 0 {
		t.Errorf("without keys: %v, %v", fields, err)
	}
	old := *w.signer.keys.Load()
	if err := w.signer.Use([]Key{{Domain: domain(t, "example.com"), Selector: "x"}}); !errors.Is(err, ErrKey) {
		t.Errorf("a bad key: %v", err)
	}
	if len(*w.signer.keys.Load()) != len(old) {
		t.Error("the keys did not stay")
	}
	if err := w.signer.Use(nil); err != nil || strings.Contains(w.sign(t, "example.com", text{mail, 0}), "DKIM-Signature") {
		t.Error("keys that were taken away still sign")
	}
}

// TestUnsignable: what readers would read differently gets no signature, and nothing is left
// running.
func TestUnsignable(t *testing.T) {
	w := newWorld(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		what string
		ctx  context.Context
		in   smtp.Content
		want error
	}{
		{"no From", t.Context(), text{"To: a@b\r\n\r\nx\r\n", 0}, ErrUnsignable},
		{"two", t.Context(), text{"From: a@example.com\r\nfrom : b@example.com\r\n\r\nx\r\n", 0}, ErrUnsignable},
		{"no end", t.Context(), text{"From: a@example.com\r\n", 1}, ErrUnsignable},
		{"a line that is no field", t.Context(), text{"From: a@example.com\r\nhello\r\n\r\nx\r\n", 0}, ErrUnsignable},
		{"nothing", t.Context(), text{"", 0}, ErrUnsignable},
		{"a header without end", t.Context(), text{"From: a@example.com\r\n" + strings.Repeat("X: y\r\n", maxHeader/6+1), 1 << 16}, ErrUnsignable},
		{"a field very often", t.Context(), text{"From: a@example.com\r\n" + strings.Repeat("To:b\r\n", 500_000) + "\r\nx\r\n", 1 << 16}, ErrUnsignable},
		{"ended", ended, text{mail, 0}, context.Canceled},
		{"broken", t.Context(), broken{}, iotest.ErrTimeout},
	} {
		fields, err := w.signer.Sign(c.ctx, domain(t, "example.com"), c.in)
		if !errors.Is(err, c.want) || len(fields) > 0 {
			t.Errorf("%s: %v, %v", c.what, fields, err)
		}
	}
}

// broken is a content that cannot be read to its end.
type broken struct{}

func (broken) Size() int64 { return 100 }
func (broken) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, mail)
	return int64(n), errors.Join(err, iotest.ErrTimeout)
}

// TestHostileHeader: a header of very many lines is signed in no time, and a message without a
// body is signed right.
func TestHostileHeader(t *testing.T) {
	w := newWorld(t)
	in := "From: a@example.com\r\nSubject: x" + strings.Repeat("\r\n y", 200_000) + "\r\n" + strings.Repeat("To: b\r\n", 900) + "\r\nx\r\n"
	if fields, err := w.signer.Sign(t.Context(), domain(t, "example.com"), text{in, 4096}); err != nil || len(fields) != 2 {
		t.Errorf("%d signatures, %v", len(fields), err)
	}
	if all, good := w.verify(t, w.sign(t, "example.com", text{"From: a@example.com\r\n\r\n", 0})); all != 2 || good != 2 {
		t.Errorf("an empty body: %d signatures, %d good", all, good)
	}
}

func TestParseKey(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	old, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	pkcs8 := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return block("PRIVATE KEY", der)
	}
	for _, c := range []struct {
		what, in, want string // part of the error
	}{
		{"PKCS #8", pkcs8(old), ""},
		{"PKCS #1", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(old)), ""},
		{"1024 bits", pkcs8(small), "1024 bits"},
		{"another algorithm", pkcs8(curve), "neither"},
		{"damaged", block("PRIVATE KEY", []byte("x")), "damaged"},
		{"encrypted", block("ENCRYPTED PRIVATE KEY", []byte("x")), "encrypted"},
		{"a certificate", block("CERTIFICATE", []byte("x")), "no private key"},
		{"nothing", "", "no private key"},
	} {
		_, err := ParseKey([]byte(c.in))
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestZoneLine(t *testing.T) {
	if got := ZoneLine("s._domainkey.example.com", "v=DKIM1; p=x"); got != `s._domainkey.example.com. IN TXT "v=DKIM1; p=x"` {
		t.Error(got)
	}
	if got := ZoneLine("a", strings.Repeat("x", 300)); got != `a. IN TXT ( "`+strings.Repeat("x", 255)+`" "`+strings.Repeat("x", 45)+`" )` {
		t.Error(got)
	}
}

// FuzzSign: what is signed is found good, whatever its header has.
func FuzzSign(f *testing.F) {
	w := newWorld(f)
	f.Add("Subject: x\r\n y\r\nTo:\r\n", "hello\r\n")
	f.Add("Date \t: x\r\nCC: a\r\ncc: b\r\n", "")
	f.Fuzz(func(t *testing.T, header, body string) {
		lines := func(s string) string {
			return strings.ReplaceAll(strings.NewReplacer("\r", "", "\x00", "").Replace(s), "\n", "\r\n")
		}
		content := "From: a@example.com\r\n" + lines(header) + "\r\n" + lines(body)
		fields, err := w.signer.Sign(t.Context(), domain(t, "example.com"), text{content, 0})
		if err != nil {
			return
		}
		var b bytes.Buffer
		for _, f := range fields {
			b.Write(f.Raw())
		}
		if all, good := w.verify(t, b.String()+content); all < 2 || good < 2 {
			t.Fatalf("%d signatures, %d good:\n%q", all, good, b.String()+content)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, typ := range []KeyType{RSA, Ed25519} {
		for _, size := range []int{4 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("key=%s/size=%dK", typ, size>>10), func(b *testing.B) {
				var key crypto.Signer
				key, _, err := NewKey(typ)
				if err != nil {
					b.Fatal(err)
				}
				s, err := NewSigner([]Key{{domain(b, "example.com"), "s", key}})
				if err != nil {
					b.Fatal(err)
				}
				c := text{"From: a@example.com\r\nSubject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 74)+"\r\n", size/76), 0}
				b.SetBytes(int64(len(c.s)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Sign(b.Context(), domain(b, "example.com"), c); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
