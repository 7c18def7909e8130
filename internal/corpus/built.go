package corpus

// built.go asks mail programs to build messages. Their content is made up; what
// counts is how each program puts it into MIME.

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/peers"
)

const (
	plainText  = "A few words in plain text.\n\n.\n-- \nsignature\n"
	otherText  = "Grüße aus Zürich, Ελληνικά, 日本語, 🙂, and = signs =20 that look encoded.\nFrom the start of a line.\n"
	plainHTML  = `<!DOCTYPE html><p>A few words &amp; a <a href="https://example.org/?a=1&b=2">link</a>`
	imageHTML  = `<p>Look: <img src="cid:image@example.org"></p>`
	ampHTML    = `<!doctype html><html ⚡4email><head></head><body>amp</body></html>`
	watchHTML  = `<p>tiny</p>`
	calendar   = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"
	innerMail  = "From: inner@example.org\r\nSubject: forwarded\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\ninner text\r\n"
	onePixel   = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
	longLine   = 1500 // more than the 998 bytes of RFC 5322, Section 2.1.1
	longHeader = 400
)

type fields = peers.NodeMessage

// variant is one way to fill a part of a nodemailer message.
type variant struct {
	name   string
	fields fields
}

func nodemailer(t testing.TB) []Message {
	t.Helper()
	var names []string
	var wanted []fields
	add := func(name string, parts ...fields) {
		m := fields{"from": "Änne Example <anne@example.org>", "to": "bob@example.net", "subject": "A message"}
		for _, part := range parts {
			maps.Copy(m, part)
		}
		names, wanted = append(names, name), append(wanted, m)
	}
	for _, body := range nodeBodies() {
		for _, attached := range nodeAttachments() {
			add(body.name+", "+attached.name, body.fields, attached.fields)
		}
	}
	for _, extra := range nodeExtras() {
		add(extra.name, fields{"text": plainText}, extra.fields)
	}
	var messages []Message
	for i, raw := range peers.NodeBuild(t, wanted...) {
		messages = append(messages, Message{Name: names[i], Source: "nodemailer", Raw: normalise(raw)})
	}
	return messages
}

func nodeBodies() []variant {
	return []variant{
		{"empty", nil},
		{"text", fields{"text": plainText}},
		{"text in base64", fields{"text": otherText, "textEncoding": "base64"}},
		{"text in quoted-printable", fields{"text": otherText, "textEncoding": "quoted-printable"}},
		{"long line of text", fields{"text": strings.Repeat("word ", longLine/5)}},
		{"html", fields{"html": plainHTML}},
		{"text and html", fields{"text": plainText, "html": plainHTML}},
		{"other text and html", fields{"text": otherText, "html": plainHTML + otherText}},
		{"text, html and amp", fields{"text": plainText, "html": plainHTML, "amp": ampHTML}},
		{"text, html for a watch and html", fields{"text": plainText, "watchHtml": watchHTML, "html": plainHTML}},
		{"invitation", fields{"text": plainText, "icalEvent": fields{"method": "REQUEST", "content": calendar}}},
		{"own alternative", fields{"text": plainText, "alternatives": []fields{{"contentType": "text/x-web-markdown", "content": "**text**"}}}},
	}
}

func nodeAttachments() []variant {
	image := fields{"filename": "image.png", "content": onePixel, "encoding": "base64", "cid": "image@example.org"}
	document := fields{"filename": "document.pdf", "content": "JVBERi0xLjQK", "encoding": "base64"}
	return []variant{
		{"nothing attached", nil},
		{"a document", fields{"attachments": []fields{document}}},
		{"two documents", fields{"attachments": []fields{document, {"filename": "résumé – 日本.txt", "content": otherText}}}},
		{"an image in the html", fields{"html": imageHTML, "attachments": []fields{image}}},
		{"an image in the html and a document", fields{"html": imageHTML, "attachments": []fields{image, document}}},
		{"a forwarded message", fields{"attachments": []fields{{"contentType": "message/rfc822", "content": innerMail}}}},
		{"a calendar without disposition", fields{"attachments": []fields{{"contentType": "text/calendar", "contentDisposition": "inline", "content": calendar}}}},
	}
}

func nodeExtras() []variant {
	return []variant{
		{"encoded words", fields{"subject": otherText, "to": "Jürgen Größe <jg@example.net>", "headers": fields{"X-Long": strings.Repeat("ä ", longHeader)}}},
		{"urgent", fields{"priority": "high"}},
		{"reply in a thread", fields{"inReplyTo": "<1@example.org>", "references": "<0@example.org> <1@example.org>", "replyTo": "list@example.org"}},
		{"mailing list", fields{"list": fields{"unsubscribe": fields{"url": "https://example.org/u", "comment": "leave"}, "id": "list.example.org", "help": "help@example.org"}}},
		{"group and copies", fields{"to": "Friends: a@example.net, b@example.net;", "cc": "c@example.net", "sender": "s@example.org"}},
		{"many recipients", fields{"to": strings.Repeat("someone@example.net, ", 100), "cc": "c@example.net"}},
		{"prepared header", fields{"headers": fields{"X-Prepared": fields{"prepared": true, "value": strings.Repeat("x", longLine)}}}},
		{"raw 8-bit", fields{"raw": "From: a@example.org\r\nSubject: Grüße\r\n\r\nZürich\r\n"}},
		{"raw 8-bit long line", fields{"raw": "From: a@example.org\r\nSubject: long\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + strings.Repeat("ü", longLine) + "\r\n"}},
		{"raw without body", fields{"raw": "From: a@example.org\r\nTo: b@example.net\r\nSubject: none\r\n\r\n"}},
		{"raw binary", fields{"raw": fields{"content": "RnJvbTogYUBleGFtcGxlLm9yZw0KU3ViamVjdDogYmluYXJ5DQpDb250ZW50LVRyYW5zZmVyLUVuY29kaW5nOiBiaW5hcnkNCg0KAAH/DQo=", "encoding": "base64"}}},
		{"raw, nested deep", fields{"raw": nested(12)}},
		{"raw digest", fields{"raw": digest(5)}},
		{"raw of dots", fields{"raw": "Subject: dots\r\nX-Dots: .\r\n\r\n.\r\n..\r\n...\r\n.x\r\n.\r\n"}},
		{"raw folded", fields{"raw": "Subject: folded\r\n\tonce\r\n  twice\r\n\t\r\nDKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=ab\r\n\t cd\r\n\r\ntext\r\n"}},
	}
}

// nested is a multipart within a multipart, and so on.
func nested(depth int) string {
	var open, closing strings.Builder
	for i := range depth {
		fmt.Fprintf(&open, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
		fmt.Fprintf(&closing, "--b%d--\r\n", depth-1-i)
	}
	return "From: a@example.org\r\nMIME-Version: 1.0\r\n" + open.String() + "Content-Type: text/plain\r\n\r\ntext\r\n" + closing.String()
}

// digest is a multipart/digest, RFC 2046, Section 5.1.5.
func digest(n int) string {
	var b strings.Builder
	b.WriteString("From: list@example.org\r\nMIME-Version: 1.0\r\nContent-Type: multipart/digest; boundary=d\r\n\r\npreamble\r\n")
	for range n {
		b.WriteString("--d\r\n\r\n" + innerMail)
	}
	return b.String() + "--d--\r\nepilogue\r\n"
}

func swaks(t testing.TB) []Message {
	t.Helper()
	variants := []struct {
		name string
		args []string
	}{
		{"plain", nil},
		{"html part", []string{"--attach-type", "text/html", "--attach-body", plainHTML}},
		{"text and attachment", []string{"--body", plainText, "--attach-name", "a.bin", "--attach-type", "application/octet-stream", "--attach", "content"}},
		{"two bodies", []string{"--attach-type", "text/plain", "--attach-body", plainText, "--attach-type", "text/html", "--attach-body", plainHTML}},
		{"added fields", []string{"--add-header", "X-Test: yes", "--add-header", "List-Id: <list.example.org>"}},
		{"8-bit", []string{"--header", "Subject: Grüße", "--body", otherText}},
		{"long line", []string{"--body", strings.Repeat("x", longLine)}},
		{"no header", []string{"--data", "Subject: bare\\n\\ntext"}},
	}
	var messages []Message
	for _, v := range variants {
		args := append([]string{"--dump-mail", "--from", "anne@example.org", "--to", "bob@example.net"}, v.args...)
		out, code := peers.Swaks(t, args...)
		if code != 0 {
			t.Fatalf("corpus: swaks %q exits with %d:\n%s", args, code, out)
		}
		messages = append(messages, Message{Name: v.name, Source: "swaks", Raw: normalise([]byte(out))})
	}
	return messages
}
