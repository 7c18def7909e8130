package parts

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// attachment returns a message with one attachment of n octets, in base64.
func attachment(n int) string {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(data)
	text := base64.StdEncoding.EncodeToString(data)
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=\"=_x\"\r\n\r\n--=_x\r\n\r\nhello\r\n--=_x\r\n" +
		"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	for len(text) > 76 {
		b.WriteString(text[:76] + "\r\n")
		text = text[76:]
	}
	b.WriteString(text + "\r\n--=_x--\r\n")
	return b.String()
}

// BenchmarkScan is the cost of finding the parts of a message.
func BenchmarkScan(b *testing.B) {
	for name, raw := range map[string]string{
		"small":       attachment(2000),
		"attachment":  attachment(8 << 20),
		"dashes":      "Content-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("--\r\n", 2<<20),
		"1000parts":   "Content-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n", 999) + "--x--\r\n",
		"no delimter": "Content-Type: multipart/mixed; boundary=x\r\n\r\n" + strings.Repeat("a\r\n", 2<<20),
	} {
		b.Run("message="+name, func(b *testing.B) {
			h, body := split(raw)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Scan(h, strings.NewReader(body), int64(len(body)), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecode is the cost of decoding, in encoded octets.
func BenchmarkDecode(b *testing.B) {
	_, mail := split(attachment(8 << 20))
	qp := strings.Repeat("the quick brown fox j=C3=BCmps over the lazy dog, and so on and so f=\r\n", 100_000)
	for _, tt := range []struct {
		enc  Encoding
		text string
	}{{Base64, mail}, {QuotedPrintable, qp}} {
		b.Run(fmt.Sprint("encoding=", tt.enc), func(b *testing.B) {
			p := Part{Encoding: tt.enc, Size: int64(len(tt.text))}
			b.SetBytes(p.Size)
			buf := make([]byte, 64<<10)
			src := bytes.NewReader([]byte(tt.text))
			for b.Loop() {
				r := NewReader(src, &p, nil)
				for off := int64(0); ; {
					n, err := r.ReadAt(buf, off)
					if off += int64(n); err == io.EOF {
						break
					}
				}
			}
		})
	}
}
