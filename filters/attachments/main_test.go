package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/corpus"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

func TestNative(t *testing.T) {
	testNames(t, guests.Native(newFilter))
	testParts(t, guests.Native(newFilter))
	testActions(t, guests.Native(newFilter))
	testConfig(t, guests.Native(newFilter))
	testUnreadable(t, guests.Native(newFilter))
}

var envelope = filtertest.Envelope{From: "a@example.com", To: []string{"b@example.org"}}

// ask returns the filter's answer to a message, with what it noted.
func ask(t *testing.T, load guests.Load, config, eml string) (filtertest.Result, string) {
	t.Helper()
	r := filtertest.Deliver(t, filtertest.Options{Policy: load.Must(t, config)}, envelope, eml).Step(policy.StageMessage)
	if r.Err != nil {
		t.Errorf("%s: %v", config, r.Err)
	}
	return r, strings.TrimPrefix(strings.Join(r.Tags, " "), "match=")
}

// attached is a message with one attachment beside its text, whose header has these lines.
func attached(lines string) string {
	return "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\ntext\n--b\n" + lines + "\n\nAAAA\n--b--\n"
}

// testNames: what a name is written like, and what is seen in it.
func testNames(t *testing.T, load guests.Load) {
	const exe = "name .exe"
	for _, tt := range []struct{ disposition, want, why string }{
		{`filename=report.pdf`, "", "nothing to refuse"},
		{`filename=exe`, "", "no ending"},
		{`filename="report.exe.pdf"`, "", "the last ending counts"},
		{`filename=setup.exe`, exe, "plain"},
		{`filename="SETUP.ExE"`, exe, "any case"},
		{`filename="invoice.pdf.exe"`, exe, "two endings"},
		{`filename="setup.exe. . ."`, exe, "dots and spaces at the end, which Windows drops"},
		{`filename="setup.exe "`, exe, "a space"},
		{`filename="setup. exe"`, exe, "a space behind the dot"},
		{`filename="setup.exe:x.pdf"`, exe, "a stream of a file"},
		{`filename="..\\..\\setup.exe"`, exe, "a path"},
		{`filename="a/b/setup.exe"`, exe, "a path of Unix"},
		{`filename*=utf-8''setup%2Eexe`, exe, "RFC 2231"},
		{`filename*0="set"; filename*1="up.e"; filename*2="xe"`, exe, "RFC 2231, in pieces"},
		{`filename*0*=utf-8''set; filename*1*=up%2Ee; filename*2="xe"`, exe, "RFC 2231, pieces of both kinds"},
		{`filename="=?utf-8?b?c2V0dXAuZXhl?="`, exe, "an encoded word, RFC 2047"},
		{`filename="=?utf-8?q?set?= =?utf-8?q?up=2Eexe?="`, exe, "two of them"},
		{`filename*=iso-8859-1''setup.exe; filename=report.pdf`, exe, "two names, the first"},
		{`filename=report.pdf; filename=setup.exe`, exe, "two names, the second"},
		{`filename*=utf-8''invoice%E2%80%AEfdp.exe`, exe, "turned around, and an ending that is refused"},
		{`filename*=utf-8''invoice%E2%80%AEfdp.zip`, "a disguised name", "turned around"},
		{`filename*=utf-8''setup.e%E2%80%8Bxe`, exe, "a space of no width in the ending"},
		{`filename*=utf-8''setup%EF%BC%8E%EF%BD%85%EF%BD%98%EF%BD%85`, exe, "letters of full width"},
		{`filename*=utf-8''setup%E2%80%A4exe`, exe, "a dot that is another"},
		{`filename*=utf-8''setup.exe%00.pdf`, exe, "a NUL behind the ending"},
		{`filename="invoice.pdf                                .txt"`, "a disguised name", "an ending out of sight"},
		{`filename="invoice.{3050f4d8-98b5-11cf-bb82-00aa00bdce0b}"`, "a disguised name", "the number of a component"},
		{`filename="=?x-none?b?c2V0dXAuZXhl?="`, "a disguised name", "a charset that nobody knows"},
		{`filename*=utf-8''%D7%A9%D7%9C%D7%95%D7%9D%E2%80%8F.pdf`, "", "a mark of direction, as names have it"},
		{`filename="Résumé – final (2).docx"`, "", "a name as people write them"},
		{`filename="why? =? because.txt"`, "", "what only begins like an encoded word"},
	} {
		_, got := ask(t, load, `{}`, attached("Content-Type: application/octet-stream\nContent-Disposition: attachment; "+tt.disposition))
		if got != tt.want {
			t.Errorf("%s: got %q, want %q (%s)", tt.disposition, got, tt.want, tt.why)
		}
	}
}

// nested is a message in a message, so deep.
func nested(n int, inner string) string {
	return strings.Repeat("Content-Type: message/rfc822\n\n", n) + inner
}

// testParts: what is not in a name.
func testParts(t *testing.T, load guests.Load) {
	name := attached("Content-Type: application/pdf; name=setup.exe")
	many := "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", 50) + "--b--\n"
	for _, tt := range []struct{ config, eml, want, why string }{
		{`{}`, "Subject: plain\n\nsetup.exe\n", "", "a name in a text is none"},
		{`{}`, name, "name .exe", "the name of the type"},
		{`{}`, nested(3, name), "name .exe", "in a message in a message"},
		{`{}`, "Content-Type: application/octet-stream; name=setup.exe\n\nx\n", "name .exe", "the message itself"},
		{`{"extensions": [".PDF"]}`, name, "", "another list"},
		{`{"extensions": [".PDF"]}`, attached("Content-Disposition: attachment; filename=a.pdf"), "name .pdf", "another list"},
		{`{"more_extensions": ["zip"]}`, attached("Content-Disposition: attachment; filename=a.zip"), "name .zip", "more"},
		{`{"more_extensions": ["zip"]}`, name, "name .exe", "more, not others"},
		{`{"extensions": []}`, name, "", "none"},
		{`{"anywhere": true}`, attached("Content-Disposition: attachment; filename=setup.exe.txt"), "name .exe", "any of the endings"},
		{`{"disguised": false}`, attached("Content-Disposition: attachment; filename*=utf-8''a%E2%80%AEb.zip"), "", "not looked for"},
		{`{}`, attached("Content-Type: Application/X-MSDownload"), "type application/x-msdownload", "a type"},
		{`{}`, attached("Content-Type: message/partial; id=x; number=1; total=2"), "type message/partial", "a piece of a message"},
		{`{"types": ["audio/*"]}`, attached("Content-Type: audio/mpeg"), "type audio", "all of a kind"},
		{`{"types": ["audio/*"]}`, attached("Content-Type: application/x-msdownload"), "", "another list"},
		{`{}`, nested(10, "\nx\n"), "", "as deep as may be"},
		{`{}`, nested(11, "\nx\n"), "parts too deep", "deeper"},
		{`{"depth": 32}`, nested(40, name), "parts too deep", "deeper than anybody looks"},
		{`{"parts": 51}`, many, "", "as many as may be"},
		{`{"parts": 50}`, many, "too many parts", "more"},
		{`{}`, "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", 1500) + "--b--\n", "too many parts", "more than are listed"},
		{`{}`, "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeA0KDQo=\n", "a message that is hidden", "not opened"},
		{`{}`, "Content-Type: multipart/mixed\n\nx\n", "", "malformed, as mail is"},
		{`{"malformed": true}`, "Content-Type: multipart/mixed\n\nx\n", "malformed", "malformed, where nobody wants that"},
	} {
		if _, got := ask(t, load, tt.config, tt.eml); got != tt.want {
			t.Errorf("%s: got %q, want %q (%s)\n%.200s", tt.config, got, tt.want, tt.why, tt.eml)
		}
	}
}

func testActions(t *testing.T, load guests.Load) {
	eml := attached("Content-Disposition: attachment; filename=setup.exe")
	for _, tt := range []struct{ config, action, reply, reason string }{
		{`{}`, "reject", "550 5.7.1 attachments of this kind are not accepted here: name .exe", ""},
		{`{"reply": "no"}`, "reject", "550 5.7.1 no: name .exe", ""},
		{`{"action": "tempfail"}`, "tempfail", "451 4.7.1 attachments of this kind are not accepted here: name .exe", ""},
		{`{"action": "quarantine"}`, "quarantine", "", "attachment: name .exe"},
		{`{"action": "discard"}`, "discard", "", ""},
		{`{"action": "tag"}`, "continue", "", ""},
	} {
		r, _ := ask(t, load, tt.config, eml)
		if r.Verdict.Action.String() != tt.action || r.Reply != tt.reply || r.Verdict.Reason != tt.reason || len(r.Tags) == 0 || r.Tags[0] != "match=name .exe" {
			t.Errorf("%s: got %s %q %q, tags %q", tt.config, r.Verdict.Action, r.Reply, r.Verdict.Reason, r.Tags)
		}
	}
}

func testConfig(t *testing.T, load guests.Load) {
	for config, want := range map[string]string{
		`{"extension": []}`:                 "extension: unknown key",
		`{"extensions": "exe"}`:             "extensions: ",
		`{"extensions": ["tar.gz"]}`:        "extensions: want endings",
		`{"more_extensions": ["*.exe"]}`:    "more_extensions: want endings",
		`{"more_extensions": [""]}`:         "more_extensions: want endings",
		`{"types": ["html"]}`:               "types: want media types",
		`{"types": ["*/*"]}`:                "",
		`{"types": ["text/"]}`:              "types: want media types",
		`{"types": ["text/h*"]}`:            "types: want media types",
		`{"types": ["text/html; x=y"]}`:     "types: want media types",
		`{"depth": 0}`:                      "depth: want 1 to 32",
		`{"depth": 33}`:                     "depth: want 1 to 32",
		`{"parts": 1001}`:                   "parts: want 1 to 1000",
		`{"action": "drop"}`:                "action: want one of reject",
		`{"disguised": "yes"}`:              "disguised: ",
		`{"depth": 5, "action": "discard"}`: "",
	} {
		_, err := load(config)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", config, err, want)
		}
	}
}

// testUnreadable: a message that cannot be read is not one without attachments.
func testUnreadable(t *testing.T, load guests.Load) {
	header := policy.NewMessage([]byte("Content-Type: multipart/mixed; boundary=b\r\n\r\n")).Header
	tx := &policy.Transaction{Seq: 1, Message: &policy.Message{Header: header, Body: policy.FileBody(strings.NewReader("short"), 0, 100)}}
	run := policy.NewChain(policy.Link{Filter: load.Must(t, `{}`)}).Open(new(policy.Session), nil)
	defer run.Close(t.Context())
	if d := run.Decide(t.Context(), policy.StageMessage, tx); d.Action != policy.Tempfail || d.Reply.Code != 451 || d.Reply.Enh != (smtp.Enhanced{4, 3, 0}) {
		t.Errorf("got %s %v", d.Action, d.Reply)
	}
}

// FuzzEndings: whatever stands in front of an ending, and what is not seen behind it, it is
// found, and in lower case.
func FuzzEndings(f *testing.F) {
	f.Add("invoice.pdf", uint64(0))
	f.Add("a/b\\c:d.{", uint64(0x1234567))
	f.Add("\u202Efdp\x00\xff", uint64(0o7654321))
	unseen := []string{"", ".", " ", "\u200B", "\u00A0", "\uFEFF", "\u3002", "\u2003"}
	f.Fuzz(func(t *testing.T, front string, behind uint64) {
		name := front + ".eXe"
		for ; behind > 0; behind >>= 3 {
			name += unseen[behind&7]
		}
		for _, all := range []bool{false, true} {
			if got := endings(name, all); !slices.Contains(got, "exe") {
				t.Errorf("%q, all %v: got %q", name, all, got)
			}
		}
		isDisguised(name)
	})
}

// TestCorpus: real messages pass, but one that was built to be deep and one with a program in it,
// and what is attached to them is seen.
func TestCorpus(t *testing.T) {
	want := map[string]string{"nodemailer raw, nested deep": "parts too deep", "enmime testdata/mail/attachment-octet.raw": "name .exe"}
	load := guests.Native(newFilter)
	usual, some := load.Must(t, `{}`), load.Must(t, `{"extensions": ["txt", "png", "jpg", "gif", "pdf", "bin", "ics", "html"]}`)
	messages, refused, seen := corpus.Messages(t), 0, 0
	for _, m := range messages {
		at := func(f policy.Filter) filtertest.Result {
			return filtertest.Deliver(t, filtertest.Options{Policy: f}, envelope, string(m.Raw)).Step(policy.StageMessage)
		}
		name, r := m.Source+" "+m.Name, at(usual)
		if r.Err != nil || r.Reply != "" && (want[name] == "" || !strings.HasSuffix(r.Reply, ": "+want[name])) {
			t.Errorf("%s: %s %v", name, r.Reply, r.Err)
		}
		if r.Reply != "" {
			refused++
		}
		if strings.Contains(at(some).Reply, ": name .") {
			seen++
		}
	}
	t.Logf("%d messages, %d refused; %d with attachments of eight usual endings", len(messages), refused, seen)
	if refused != len(want) || seen < 50 {
		t.Errorf("%d refused, want %d; %d with attachments, want 50 or more", refused, len(want), seen)
	}
}
