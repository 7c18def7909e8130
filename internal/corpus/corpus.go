// Package corpus gives tests real messages: what spam and mailing lists, mail
// programs and web applications put on the wire, and what the authors of two MIME
// libraries found worth keeping.
//
// Nothing is copied into this repository. Files are read where packages put
// them:
//
//	spamassassin   samples of Debian's package spamassassin
//	python         e-mail test data of Debian's libpython3.11-testsuite
//	enmime         test data of the Go module github.com/jhillyerd/enmime/v2
//	nodemailer     built by nodemailer when the test runs
//	swaks          built by swaks when the test runs
//
// The last two are asked for many combinations of body, attachment, encoding and
// header. Messages of the same structure count once, whatever their source: a
// hundred text messages that differ in their words test no more than one does.
package corpus

import (
	"bytes"
	"slices"
	"sync"
	"testing"
)

// Message is a message as an SMTP client would send it, before dot-stuffing.
type Message struct {
	Name   string // file name or description; unique within its source
	Source string // spamassassin, python, enmime, nodemailer or swaks

	// Raw has CRLF at the end of every line, the last included, and no CR or LF
	// elsewhere. All else is as it was found: 8-bit text, NUL, lines longer than
	// RFC 5321 allows, broken MIME. A test must not change it.
	Raw []byte
}

// all holds the messages of this process: they take a second to build.
var all struct {
	mu       sync.Mutex
	messages []Message
}

// Messages returns all messages, 150 or more, in an order that is the same in
// every run. It skips the test when a source is missing, and fails it under CI
// (see package peers). It may be called from several tests at the same time.
func Messages(t testing.TB) []Message {
	t.Helper()
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.messages == nil {
		all.messages = oncePerStructure(slices.Concat(
			spamassassin(t), python(t), enmime(t), swaks(t), nodemailer(t)))
	}
	return slices.Clone(all.messages)
}

// oncePerStructure drops messages that have the structure of an earlier one.
func oncePerStructure(messages []Message) []Message {
	seen := make(map[string]bool)
	return slices.DeleteFunc(messages, func(m Message) bool {
		s := structure(m.Raw)
		repeated := seen[s]
		seen[s] = true
		return repeated
	})
}

// normalise makes of stored bytes what a client would send: every LF, CR or CRLF
// becomes CRLF, the last line is ended, and the "From " line with which a mailbox
// file marks the start of a message (RFC 4155) is dropped.
func normalise(stored []byte) []byte {
	raw := bytes.ReplaceAll(stored, []byte("\r\n"), []byte("\n"))
	raw = bytes.ReplaceAll(raw, []byte("\r"), []byte("\n"))
	if bytes.HasPrefix(raw, []byte("From ")) {
		_, raw, _ = bytes.Cut(raw, []byte("\n"))
	}
	if !bytes.HasSuffix(raw, []byte("\n")) {
		raw = append(raw, '\n')
	}
	return bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
}
