package message

import (
	"strings"
	"testing"
)

// typicalHeader is a header of 2 KB as a large provider sends it.
func typicalHeader() []byte {
	var b strings.Builder
	for range 4 {
		b.Write(typicalReceived().Field().Raw())
	}
	b.WriteString("DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=20240101;\r\n" +
		" h=to:subject:message-id:date:from:mime-version;\r\n bh=" + strings.Repeat("x", 44) + "=;\r\n" +
		strings.Repeat(" "+strings.Repeat("s", 70)+"\r\n", 5))
	for _, name := range strings.Fields("Return-Path From To Cc Subject Date Message-ID MIME-Version Content-Type X-Mailer List-Id List-Unsubscribe X-One X-Two") {
		b.WriteString(name + ": " + strings.Repeat("value ", 5) + "\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// BenchmarkParse: how fast is a header of 2 KB taken apart, and looked up in?
func BenchmarkParse(b *testing.B) {
	raw := typicalHeader()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		Parse(raw)
	}
}

// BenchmarkEnd: in one piece, and octet by octet.
func BenchmarkEnd(b *testing.B) {
	raw := typicalHeader()
	b.Run("whole", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			End(raw)
		}
	})
	b.Run("octets", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			var f EndFinder
			for i := range raw {
				f.End(raw[:i+1])
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	h, _ := Parse(typicalHeader())
	b.ReportAllocs()
	for b.Loop() {
		if h.Find("x-two", 0) < 0 {
			b.Fatal("not found")
		}
	}
}

// BenchmarkInsertReceived: what every message gets.
func BenchmarkInsertReceived(b *testing.B) {
	h, _ := Parse(typicalHeader())
	r := typicalReceived()
	b.Run("make", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.Field()
		}
	})
	f := r.Field()
	b.Run("insert", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.Insert(0, f)
		}
	})
}

// BenchmarkNewField: plain, and encoded.
func BenchmarkNewField(b *testing.B) {
	for name, text := range map[string]string{"ascii": "yes, score=4.2 required=5.0", "utf8": "Grüße aus München an alle"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NewField("X-Spam-Status", text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
