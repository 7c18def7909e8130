package corpus

import (
	"bytes"
	"maps"
	"net/smtp"
	"slices"
	"strings"
	"testing"

	mime "github.com/jhillyerd/enmime/v2"

	"github.com/penstock/penstock/internal/peers"
)

func TestThereAreEnoughMessages(t *testing.T) {
	const enough = 150
	messages := Messages(t)
	perSource := make(map[string]int)
	seen := make(map[string]bool)
	for _, m := range messages {
		perSource[m.Source]++
		if id := m.Source + "/" + m.Name; seen[id] {
			t.Errorf("two messages are named %s", id)
		} else {
			seen[id] = true
		}
	}
	for _, source := range slices.Sorted(maps.Keys(perSource)) {
		t.Logf("%4d of %s", perSource[source], source)
	}
	t.Logf("%4d in all", len(messages))
	if len(messages) < enough {
		t.Errorf("there are %d messages of different structure, want %d or more", len(messages), enough)
	}
	for _, source := range []string{"spamassassin", "python", "enmime", "nodemailer", "swaks"} {
		if perSource[source] == 0 {
			t.Errorf("no message of %s", source)
		}
	}
}

func TestMessagesAreAsAClientSendsThem(t *testing.T) {
	for _, m := range Messages(t) {
		rest := bytes.ReplaceAll(m.Raw, []byte("\r\n"), nil)
		if bytes.ContainsAny(rest, "\r\n") || !bytes.HasSuffix(m.Raw, []byte("\r\n")) {
			t.Errorf("%s/%s has a bare CR or LF, or does not end with CRLF:\n%q", m.Source, m.Name, m.Raw)
		}
	}
}

// The corpus must hold the shapes that break gateways, or a green test with it
// says little.
func TestCorpusHasTheHardShapes(t *testing.T) {
	messages := Messages(t)
	for _, shape := range []struct{ what, inStructure string }{
		{"8-bit header", "bytes 8bit "},
		{"8-bit body", " 8bit\n"},
		{"NUL", "+nul"},
		{"a line longer than 998", "lines too long"},
		{"a broken content type", "broken "},
		{"a line in the header that is no field", "fields  "},
		{"a message within a message", "message/rfc822"},
		{"nested ten deep", "\n          multipart/mixed"},
		{"a part without type in a multipart", "\n  charset="},
		{"signed", "multipart/signed"},
		{"delivery report", "multipart/report"},
	} {
		if !slices.ContainsFunc(messages, func(m Message) bool { return strings.Contains(structure(m.Raw), shape.inStructure) }) {
			t.Errorf("no message with %s", shape.what)
		}
	}
}

// Another reader of MIME agrees that what the programs built is sound. Its answer
// for files that were written to be broken does not matter.
func TestBuiltMessagesAreSound(t *testing.T) {
	for _, m := range Messages(t) {
		if m.Source != "nodemailer" || strings.HasPrefix(m.Name, "raw") {
			continue
		}
		envelope, err := mime.ReadEnvelope(bytes.NewReader(m.Raw))
		if err != nil {
			t.Errorf("%s/%s: %v", m.Source, m.Name, err)
			continue
		}
		for _, problem := range envelope.Errors {
			if problem.Severe {
				t.Errorf("%s/%s: %v", m.Source, m.Name, problem)
			}
		}
	}
}

// Postfix stores each message as it was sent, but for headers that run into the
// body: it puts the missing empty line between them. Whatever else changes on the
// way through a gateway to this Postfix is the gateway's doing.
func TestPostfixKeepsMessages(t *testing.T) {
	server := peers.Postfix(t, peers.PostfixOptions{})
	messages := Messages(t)
	for _, m := range messages {
		err := smtp.SendMail(server.Addr, nil, "sender@client.test", []string{"user@example.org"}, m.Raw)
		if err != nil {
			t.Fatalf("%s/%s: %v", m.Source, m.Name, err)
		}
	}
	delivered := make(map[string]bool)
	for _, raw := range server.Wait(t, len(messages)) {
		delivered[string(peers.AsSent(raw))] = true
	}
	mended := 0
	for _, m := range messages {
		switch {
		case delivered[string(m.Raw)]:
		case delivered[endHeader(m.Raw)]:
			mended++
		default:
			t.Errorf("%s/%s is not delivered as it was sent", m.Source, m.Name)
		}
	}
	t.Logf("%d messages delivered, %d of them mended", len(messages), mended)
	if most := len(messages) / 20; mended > most {
		t.Errorf("%d messages are mended, want %d at most", mended, most)
	}
}

// endHeader puts an empty line before the first line that is no header field.
func endHeader(raw []byte) string {
	var b strings.Builder
	for line := range strings.SplitAfterSeq(string(raw), "\r\n") {
		name, _, ok := strings.Cut(line, ":")
		folded := b.Len() > 0 && strings.IndexAny(line, " \t") == 0
		if !folded && (!ok || strings.ContainsAny(name, " \t\r\n")) {
			return b.String() + "\r\n" + string(raw[b.Len():])
		}
		b.WriteString(line)
	}
	return b.String()
}

func TestNormalise(t *testing.T) {
	for _, test := range []struct{ stored, want, why string }{
		{"", "\r\n", "an empty file is one empty line"},
		{"a", "a\r\n", "the last line is ended"},
		{"a\n", "a\r\n", "LF"},
		{"a\r", "a\r\n", "CR"},
		{"a\r\n", "a\r\n", "CRLF stays"},
		{"a\n\rb", "a\r\n\r\nb\r\n", "LF CR are two line ends"},
		{"a\r\r\nb", "a\r\n\r\nb\r\n", "a CR before CRLF is a line end of its own"},
		{"From a@b Mon\nSubject: c\n", "Subject: c\r\n", "mailbox line at the start"},
		{"Subject: c\n\nFrom a\n", "Subject: c\r\n\r\nFrom a\r\n", "but nowhere else"},
		{"\x00\xff\n", "\x00\xff\r\n", "all other bytes stay"},
	} {
		if got := string(normalise([]byte(test.stored))); got != test.want {
			t.Errorf("normalise(%q) = %q, want %q: %s", test.stored, got, test.want, test.why)
		}
	}
}

func TestStructure(t *testing.T) {
	const text = "From: a\r\nContent-Type: text/plain; charset=utf-8\r\n\r\ntext\r\n"
	const multi = "Content-Type: multipart/mixed; boundary=b\r\n\r\npre\r\n--b\r\n\r\none\r\n--b\r\nContent-Type: text/html\r\n\r\ntwo\r\n--b--\r\npost\r\n"
	for _, test := range []struct {
		a, b string
		same bool
		why  string
	}{
		{text, strings.Replace(text, "text\r\n", "other words\r\n", 1), true, "other words"},
		{text, strings.Replace(text, "From: a", "FROM: b", 1), true, "other value, other case of a name"},
		{text, "To: c\r\n" + text, false, "one field more"},
		{text, strings.Replace(text, "utf-8", "UTF-8", 1), true, "case of the charset"},
		{text, strings.Replace(text, "utf-8", "big5", 1), false, "another charset"},
		{text, text + "ü\r\n", false, "8-bit body"},
		{text, text + strings.Repeat("x", 80) + "\r\n", false, "a longer line"},
		{text, strings.Replace(text, "text\r\n", "", 1), false, "an empty body"},
		{multi, strings.Replace(multi, "one", "1", 1), true, "other words in a part"},
		{multi, strings.Replace(multi, "boundary=b", "boundary=\"b\"", 1), true, "a quoted boundary"},
		{multi, strings.Replace(multi, "text/html", "text/plain", 1), false, "another type of a part"},
		{multi, strings.Replace(multi, "--b\r\n\r\none\r\n", "", 1), false, "one part fewer"},
		{multi, strings.Replace(multi, "--b--\r\npost\r\n", "", 1), true, "no end mark"},
	} {
		a, b := structure([]byte(test.a)), structure([]byte(test.b))
		if (a == b) != test.same {
			t.Errorf("%s: same structure is %v, want %v:\n%s\n%s", test.why, a == b, test.same, a, b)
		}
	}
}

// FuzzNormalise checks that no input leaves a bare CR or LF, and that what is
// normal stays as it is.
func FuzzNormalise(f *testing.F) {
	for _, seed := range []string{"", "a\r\n\r\nb", "\r", "\n\r", "From x\nFrom y\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		raw := normalise(stored)
		if rest := bytes.ReplaceAll(raw, []byte("\r\n"), nil); bytes.ContainsAny(rest, "\r\n") {
			t.Errorf("normalise(%q) = %q has a bare CR or LF", stored, raw)
		}
		if again := normalise(raw); !bytes.Equal(again, raw) && !bytes.HasPrefix(raw, []byte("From ")) {
			t.Errorf("normalise(%q) = %q, and once more %q", stored, raw, again)
		}
		structure(raw) // must come to an end
	})
}
