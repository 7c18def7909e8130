package tck

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
)

// table.go: what a host must answer.

// at makes a call: at a hook, of an import, with want as its result.
func at(h abi.Hook, imp string, want int64, args ...any) call {
	return call{Step: Step{At: h, Import: imp, Args: args}, want: want}
}

// reads makes a call whose result is the length of text, which it puts into the buffer.
func reads(h abi.Hook, imp, text string, args ...any) call {
	c := at(h, imp, int64(len(text)), args...)
	c.buf = text
	return c
}

// judged makes a call whose answer check judges.
func judged(h abi.Hook, imp string, check func(a Answer) string, args ...any) call {
	return call{Step: Step{At: h, Import: imp, Args: args}, check: check}
}

// Error numbers as the results of imports.
const (
	einval = int64(abi.EINVAL)
	enoent = int64(abi.ENOENT)
	eperm  = int64(abi.EPERM)
	elimit = int64(abi.ELIMIT)
	ephase = int64(abi.EPHASE)
)

const (
	initially = abi.Hook(0)
	mail      = abi.HookMail
	rcpt      = abi.HookRcpt
	headers   = abi.HookHeaders
	message   = abi.HookMessage
)

// positive wants a result above 0.
func positive(a Answer) string {
	if a.Result <= 0 {
		return fmt.Sprintf("got %s, want a positive number", result(a.Result))
	}
	return ""
}

// shuffled wants n octets that are not what the buffer was filled with.
func shuffled(n int) func(Answer) string {
	return func(a Answer) string {
		if a.Result != int64(n) || strings.Count(a.Buffer[:n], "\xee") > n/2 || strings.Count(a.Buffer[n:], "\xee") != len(a.Buffer)-n {
			return fmt.Sprintf("got %s and %q, want %d random octets", result(a.Result), a.Buffer, n)
		}
		return ""
	}
}

// scenarios are what is asked of imports where they may be called.
func scenarios() []scenario {
	return []scenario{
		{name: "core at the start", calls: []call{
			at(initially, "subscribe", 0, 1<<abi.HookMail),
			at(initially, "subscribe", einval, 1<<62),
			judged(initially, "features", func(a Answer) string {
				if got := a.Result & 0xff; got != abi.Minor {
					return fmt.Sprintf("got minor version %d, want %d", got, abi.Minor)
				}
				return ""
			}),
			judged(initially, "config", func(a Answer) string {
				if a.Result < 20 || a.Buffer != configHead+a.Buffer[len(configHead):] {
					return fmt.Sprintf("got %d and %q, want the length of the configuration and its first octets", a.Result, a.Buffer)
				}
				return ""
			}, 0, Room(20)),
			judged(initially, "config", positive, 3, Room(0)),
			at(initially, "config", einval, -1, Room(10)),
			at(initially, "config", einval, 1<<30, Room(10)),
			at(initially, "log", 0, 1, "a line"),
			at(initially, "log", 0, 0, ""),
			at(initially, "log", einval, 4, "a line"),
			at(initially, "log", einval, -1, "a line"),
			at(initially, "log_enabled", 1, 3),
			at(initially, "log_enabled", einval, 4),
			judged(initially, "now", positive),
			judged(initially, "mono", positive),
			judged(initially, "random", shuffled(40), Room(40)),
			at(initially, "random", 0, Room(0)),
		}},
		{name: "core at a hook", calls: []call{
			at(rcpt, "subscribe", ephase, 1<<abi.HookMail),
			judged(rcpt, "features", positive),
			judged(rcpt, "config", positive, 0, Room(20)),
			at(rcpt, "log", 0, 1, "a line"),
			at(rcpt, "log_enabled", 1, 3),
			judged(rcpt, "now", positive),
			judged(rcpt, "mono", positive),
			judged(rcpt, "random", shuffled(40), Room(40)),
		}},
		{name: "get", calls: []call{
			reads(mail, "get", "helo.example.net", int(abi.FieldHelo), 0, Room(100)),
			{Step: Step{mail, "get", []any{int(abi.FieldHelo), 0, Room(4)}}, want: 16, buf: "helo"},
			at(mail, "get", 16, int(abi.FieldHelo), 0, Room(0)),
			reads(mail, "get", "\x04\x03\x00\x00\x00\x00\x00\x00", int(abi.FieldTLSVersion), 0, Room(8)),
			reads(mail, "get", "\xc0\x00\x02\x01", int(abi.FieldClientIP), 0, Room(16)),
			reads(mail, "get", "BODY=8BITMIME", int(abi.FieldMailParams), 1, Room(30)),
			reads(mail, "get", "\x08\x00\x00\x00SIZE=100\x0d\x00\x00\x00BODY=8BITMIME", int(abi.FieldMailParams), -1, Room(100)),
			at(mail, "get", enoent, int(abi.FieldMailParams), 9, Room(30)),
			at(mail, "get", enoent, int(abi.FieldRcpt), 0, Room(30)),
			at(mail, "get", enoent, 9999, 0, Room(30)),
			at(mail, "get", einval, -1, 0, Room(30)),
			at(mail, "get", einval, int(abi.FieldHelo)+1<<16, 0, Room(30)),
			reads(rcpt, "get", "b@example.com", int(abi.FieldRcpt), 0, Room(30)),
			reads(rcpt, "get", "b@example.com", int(abi.FieldRcpts), 0, Room(30)),
		}},
		{name: "frame", calls: []call{
			judged(mail, StepFrame, frameOf(mail), Room(MaxRoom)),
			judged(rcpt, StepFrame, frameOf(rcpt), Room(MaxRoom)),
			judged(abi.HookClose, StepFrame, frameOf(abi.HookClose), Room(MaxRoom)),
		}},
		{name: "reply and verdict", calls: []call{
			at(rcpt, "reply", 0, "no\nsuch place"),
			at(rcpt, "reply", einval, "no\r\n250 yes"),
			at(rcpt, "reply", einval, "caf\xe9"),
			at(rcpt, "reply", einval, "a\x00b"),
			at(rcpt, "reply", elimit, strings.Repeat("\n", abi.MaxReplyLines)),
			at(rcpt, "reply", elimit, strings.Repeat("x", abi.MaxReply+1)),
			at(rcpt, StepVerdict, 0, int(abi.NewVerdict(abi.ActReject, 550, 5, 1, 1, true))),
		}, after: wantReply(policy.StageRcpt, policy.Reject, "550 5.1.1 no\nsuch place")},
		{name: "verdict without a text", calls: []call{
			at(mail, StepVerdict, 0, int(abi.NewVerdict(abi.ActTempfail, 452, 4, 3, 1, false))),
		}, after: wantReply(policy.StageMail, policy.Tempfail, "452 4.3.1 ")},
		{name: "quarantine", calls: []call{
			at(message, "tag", 0, "reason", "looks odd"),
			at(message, StepVerdict, 0, int(abi.ActQuarantine)),
		}, after: func(o outcome) string {
			if v := o.steps[policy.StageMessage].Verdict; v.Action != policy.Quarantine || v.Reason != "looks odd" {
				return fmt.Sprintf("got %v for the reason %q", v.Action, v.Reason)
			}
			return ""
		}},
		{name: "tags", calls: []call{
			at(abi.HookConnect, "tag", 0, "of", "session"),
			at(rcpt, "tag", 0, "k", "v\twith ü"),
			at(rcpt, "tag", 0, "k", ""),
			at(rcpt, "tag", einval, "", "v"),
			at(rcpt, "tag", einval, "k=", "v"),
			at(rcpt, "tag", einval, "k", "a\nb"),
			at(rcpt, "tag", elimit, "k", strings.Repeat("x", 1024)),
			judged(message, "get", func(a Answer) string {
				if !strings.Contains(a.Buffer, ".of=session") || !strings.Contains(a.Buffer, ".k=v\twith ü") {
					return fmt.Sprintf("got the tags %q", a.Buffer)
				}
				return ""
			}, int(abi.FieldTags), -1, Room(200)),
		}},
		{name: "session values", calls: []call{
			at(abi.HookConnect, "sess_get", enoent, "k", Room(10)),
			at(abi.HookConnect, "sess_set", 0, "k", "a value"),
			at(abi.HookConnect, "sess_set", 0, "gone", "x"),
			at(abi.HookConnect, "sess_set", 0, "gone", ""),
			at(abi.HookConnect, "sess_set", einval, "", "x"),
			at(abi.HookHelo, "sess_set", elimit, "k2", strings.Repeat("x", abi.MaxSession)),
			reads(message, "sess_get", "a value", "k", Room(20)),
			{Step: Step{message, "sess_get", []any{"k", Room(2)}}, want: 7, buf: "a "},
			at(message, "sess_get", enoent, "gone", Room(10)),
			reads(abi.HookClose, "sess_get", "a value", "k", Room(20)),
		}},
		{name: "scores", calls: []call{
			at(abi.HookConnect, "score", 0, "spam", 1500),
			at(rcpt, "score", 0, "spam", -500),
			at(rcpt, "score", einval, "", 1),
			at(rcpt, "score", einval, "a=b", 1),
			judged(message, "get", func(a Answer) string {
				if !strings.Contains(a.Buffer, "spam=1000") && !(strings.Contains(a.Buffer, "spam=1500") && strings.Contains(a.Buffer, "spam=-500")) {
					return fmt.Sprintf("got the scores %q", a.Buffer)
				}
				return ""
			}, int(abi.FieldScores), -1, Room(200)),
		}, since: 1},
		{name: "metrics", calls: []call{
			at(initially, "metric", 0, "looked_at", 0),
			at(initially, "metric", 1, "refused", 0),
			at(initially, "metric", 0, "looked_at", 0),
			at(initially, "metric", einval, "Not-A-Name", 0),
			at(initially, "metric", einval, "kind", 9),
			at(rcpt, "metric_add", 0, 0, 5),
			at(rcpt, "metric_add", einval, 0, -5),
			at(rcpt, "metric_add", enoent, 9, 5),
		}, since: 1},
		headerScenario(), headerReads(), bodyScenario(), bodyReplaced(), envelopeScenario(), outsideScenario(), recipientVerdicts(), parts(), scans(), waysOut(), outFacts(),
	}
}

func headerReads() scenario {
	const section = headerText + "\r\n" // with the empty line
	return scenario{name: "header, read", calls: []call{
		at(headers, "hdr_count", 5),
		{Step: Step{headers, "hdr_get", []any{2, Room(40)}}, want: 7<<32 | 10, buf: "Subject one\r\n two"},
		{Step: Step{headers, "hdr_get", []any{2, Room(3)}}, want: 7<<32 | 10, buf: "Sub"},
		{Step: Step{headers, "hdr_get", []any{2, Room(9)}}, want: 7<<32 | 10, buf: "Subject o"},
		at(headers, "hdr_get", enoent, 5, Room(9)),
		at(headers, "hdr_get", enoent, -1, Room(9)),
		at(headers, "hdr_find", 3, "X-a", 0),
		at(headers, "hdr_find", 4, "X-A", 4),
		at(headers, "hdr_find", enoent, "X-A", 5),
		at(headers, "hdr_find", enoent, "X-B", 0),
		at(headers, "hdr_find", enoent, "", 0),
		at(headers, "hdr_find", einval, "X-A", -1),
		reads(headers, "hdr_raw", section, 0, Room(300)),
		reads(headers, "hdr_raw", section[40:], 40, Room(300)),
		at(headers, "hdr_raw", 0, len(section), Room(10)),
		at(headers, "hdr_raw", einval, len(section)+1, Room(10)),
		at(headers, "hdr_raw", einval, -1, Room(10)),
		at(message, "hdr_count", 5),
	}}
}

func headerScenario() scenario {
	return scenario{name: "header, changed", calls: []call{
		at(headers, "hdr_add", 0, 0, "X-First", "1"),
		at(headers, "hdr_count", 6),
		at(headers, "hdr_find", 0, "x-first", 0),
		at(message, "hdr_add", 0, -1, "X-Last", "9"),
		at(message, "hdr_add", einval, 8, "X-No", "1"),
		at(message, "hdr_add", einval, -2, "X-No", "1"),
		at(message, "hdr_add", einval, 0, "X No", "1"),
		at(message, "hdr_add", einval, 0, "", "1"),
		at(message, "hdr_add", einval, 0, "X-No", "1\r\nBcc: all@example.com"),
		at(message, "hdr_add", eperm, 0, "Received", "from nowhere"),
		at(message, "hdr_set", 0, 4, "changed"),
		at(message, "hdr_set", eperm, 1, "from nowhere"),
		at(message, "hdr_set", enoent, 7, "x"),
		at(message, "hdr_set", enoent, -1, "x"),
		at(message, "hdr_del", 0, 5),
		at(message, "hdr_del", eperm, 1),
		at(message, "hdr_del", enoent, 6),
		at(message, "hdr_count", 6),
	}, after: wantMessage("X-First: 1\r\n" + strings.Replace(strings.Replace(headerText, "X-A: 1", "X-A: changed", 1), "x-a: 2\r\n", "X-Last: 9\r\n", 1) +
		"\r\n" + bodyText)}
}

func bodyScenario() scenario {
	return scenario{name: "body, read and spliced", calls: []call{
		at(message, "body_len", int64(len(bodyText))),
		reads(message, "body_read", bodyText, 0, Room(100)),
		reads(message, "body_read", "ello", 1, Room(4)),
		at(message, "body_read", 0, len(bodyText), Room(4)),
		at(message, "body_read", 0, 1<<62, Room(4)),
		at(message, "body_read", einval, -1, Room(4)),
		at(message, "body_splice", 0, len(bodyText), 0, "footer\r\n"),
		at(message, "body_splice", 0, 0, 5, "HELLO, dear"),
		at(message, "body_splice", einval, -1, 0, "x"),
		at(message, "body_splice", einval, 0, -1, "x"),
		judged(message, "body_splice", refused, 1<<62, 1, "x"),
		judged(message, "body_splice", refused, 0, 1<<62, "x"),
		reads(message, "body_read", "HELLO, dear\r\nworld\r\nfooter\r\n", 0, Room(100)),
		at(message, "body_commit", ephase),
	}, after: wantMessage(headerText + "\r\nHELLO, dear\r\nworld\r\nfooter\r\n")}
}

// refused wants an error number, whichever.
func refused(a Answer) string {
	if a.Result >= 0 {
		return fmt.Sprintf("got %d, want an error", a.Result)
	}
	return ""
}

func bodyReplaced() scenario {
	return scenario{name: "body, replaced", calls: []call{
		at(message, "body_write", ephase, "x"),
		at(message, "body_new", 0),
		at(message, "body_write", 3, "one"),
		at(message, "body_new", 0),
		at(message, "body_write", 5, "two\r\n"),
		at(message, "body_write", 0, ""),
		at(message, "body_write", 7, "three\r\n"),
		at(message, "body_len", int64(len(bodyText))),
		at(message, "body_commit", 0),
		at(message, "body_len", 12),
		at(message, "body_commit", ephase),
	}, after: wantMessage(headerText + "\r\ntwo\r\nthree\r\n")}
}

func envelopeScenario() scenario {
	return scenario{name: "envelope", calls: []call{
		at(mail, "env_from", 0, "new@example.net"),
		at(mail, "env_from", einval, "not an address"),
		at(rcpt, "rcpt_count", 1),
		reads(rcpt, "rcpt_get", "b@example.com", 0, Room(30)),
		at(rcpt, "rcpt_get", enoent, 1, Room(30)),
		at(rcpt, "rcpt_get", enoent, -1, Room(30)),
		at(rcpt, "rcpt_set", 0, 0, "c@example.com"),
		at(message, "rcpt_add", 0, "d@example.com"),
		at(message, "rcpt_add", 0, "e@example.com"),
		at(message, "rcpt_add", einval, ""),
		at(message, "rcpt_add", einval, "<f@example.com>"),
		at(message, "rcpt_add", einval, strings.Repeat("x", abi.MaxAddress)+"@example.com"),
		at(message, "rcpt_set", enoent, 3, "g@example.com"),
		at(message, "rcpt_set", einval, 0, "nobody"),
		at(message, "rcpt_del", 0, 1),
		at(message, "rcpt_del", enoent, 2),
		at(message, "rcpt_count", 2),
		at(message, "env_from", 0, ""),
	}, after: func(o outcome) string {
		got := "<" + o.tx.Sender.Path.String() + ">"
		for _, r := range o.tx.Rcpts {
			got += " " + r.Path.String()
		}
		if want := "<> c@example.com e@example.com"; got != want {
			return fmt.Sprintf("the envelope is %s, want %s", got, want)
		}
		return ""
	}}
}

func recipientVerdicts() scenario {
	reject := int(abi.NewVerdict(abi.ActReject, 550, 5, 2, 1, true))
	return scenario{name: "verdicts about recipients", calls: []call{
		at(headers, "rcpt_verdict", einval, 0, reject), // before there is a text
		at(headers, "reply", 0, "not her"),
		at(headers, "rcpt_verdict", enoent, 1, reject),
		at(headers, "rcpt_verdict", enoent, -1, reject),
		at(headers, "rcpt_verdict", einval, 0, int(abi.NewVerdict(abi.ActReject, 450, 4, 0, 0, false))),
		at(headers, "rcpt_verdict", einval, 0, int(abi.ActDisconnect)),
		at(headers, "rcpt_verdict", einval, 0, -1<<63),
		at(headers, "rcpt_verdict", 0, 0, int(abi.ActDiscard)),
		at(headers, "rcpt_verdict", 0, 0, int(abi.ActContinue)),
		at(headers, "rcpt_verdict", 0, 0, reject),
	}, since: 1}
}

// mimeText is a message of two parts, of which the second is encoded.
const mimeText = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n" +
	"--b\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\nUEsDBA==\r\n--b--\r\n"

func parts() scenario {
	recordOf := func(depth, parent int64, want string) func(Answer) string {
		return func(a Answer) string {
			b := []byte(a.Buffer)
			gotDepth, gotParent := int32(binary.LittleEndian.Uint32(b[abi.PartOffDepth:])), int32(binary.LittleEndian.Uint32(b[abi.PartOffParent:]))
			if a.Result < abi.PartHead || int64(gotDepth) != depth || int64(gotParent) != parent || !strings.Contains(a.Buffer, want) {
				return fmt.Sprintf("got a record of %d octets, depth %d, parent %d: %q", a.Result, gotDepth, gotParent, a.Buffer)
			}
			return ""
		}
	}
	return scenario{name: "parts", message: mimeText, calls: []call{
		at(message, "part_count", 3),
		judged(message, "part_info", recordOf(0, -1, "multipart/mixed"), 0, Room(200)),
		judged(message, "part_info", recordOf(1, 0, "a.zip"), 2, Room(200)),
		at(message, "part_info", enoent, 3, Room(200)),
		at(message, "part_info", enoent, -1, Room(200)),
		at(message, "part_len", 8, 2, int(abi.PartRaw)),
		at(message, "part_len", 4, 2, int(abi.PartDecoded)),
		at(message, "part_len", enoent, 3, int(abi.PartDecoded)),
		at(message, "part_len", einval, 2, 9),
		reads(message, "part_read", "PK\x03\x04", 2, int(abi.PartDecoded), 0, Room(20)),
		reads(message, "part_read", "K\x03", 2, int(abi.PartDecoded), 1, Room(2)),
		reads(message, "part_read", "UEsDBA==", 2, int(abi.PartRaw), 0, Room(20)),
		at(message, "part_read", 0, 2, int(abi.PartDecoded), 4, Room(20)),
		at(message, "part_read", einval, 2, int(abi.PartDecoded), -1, Room(20)),
		at(message, "part_read", einval, 2, 9, 0, Room(20)),
		at(message, "part_read", enoent, 3, 0, 0, Room(20)),
	}, since: 1}
}

// scans looks for patterns and makes checksums, in the message of parts.
func scans() scenario {
	hit := at(message, "match", 1, 0, 2, 0, Room(20))
	hit.buf = "\x02\x00\x00\x00\x00\x00\x00\x00" + "\x01\x00\x00\x00" + "\x02\x00\x00\x00"
	const pk = "\x04\x00\x00\x00hell" + "\x02\x00\x00\x00\x03\x04"
	return scenario{name: "scans", message: mimeText, calls: []call{
		at(initially, "match_set", 0, int(abi.MatchLiteral), pk),
		at(initially, "match_set", 1, int(abi.MatchRegexp), "\x03\x00\x00\x00^h."),
		at(initially, "match_set", einval, int(abi.MatchRegexp), "\x01\x00\x00\x00("),
		at(initially, "match_set", einval, int(abi.MatchLiteral), "\x09\x00\x00\x00a"),
		at(initially, "match_set", einval, 9, pk),
		hit,
		at(message, "match", 1, 1, 1, 0, Room(0)),
		at(message, "match", 0, 0, 2, 3, Room(20)),
		at(message, "match", 1, 0, abi.ScanBody, 0, Room(0)),
		at(message, "match", 0, 0, abi.ScanHeader, 0, Room(0)),
		at(message, "match", enoent, 2, 1, 0, Room(20)),
		at(message, "match", enoent, 0, 3, 0, Room(20)),
		at(message, "match", einval, 0, 1, -1, Room(20)),
		reads(message, "hash", "\x10\x89\x3f\xd7\xcf\xf6\x6d\xca\x19\x3f\x65\x8c\xa9\x43\x8d\x15", int(abi.HashMD5), 2, Room(20)),
		at(message, "hash", 32, int(abi.HashSHA256), abi.ScanBody, Room(0)),
		at(message, "hash", 20, int(abi.HashSHA1), abi.ScanHeader, Room(0)),
		at(message, "hash", einval, 9, 1, Room(8)),
		at(message, "hash", enoent, int(abi.HashMD5), 3, Room(8)),
	}, since: 1}
}

func wantMessage(want string) func(outcome) string {
	return func(o outcome) string {
		if o.message != want {
			return fmt.Sprintf("the message is\n%q, want\n%q", o.message, want)
		}
		return ""
	}
}

func wantReply(stage policy.Stage, a policy.Action, want string) func(outcome) string {
	return func(o outcome) string {
		v := o.steps[stage].Verdict
		if v.Action != a || v.Reply == nil {
			return fmt.Sprintf("got the verdict %v with reply %v, want %v", v.Action, v.Reply, a)
		}
		if got := fmt.Sprintf("%d %d.%d.%d %s", v.Reply.Code, v.Reply.Enh[0], v.Reply.Enh[1], v.Reply.Enh[2], v.Reply.Text); !strings.HasPrefix(got, want) {
			return fmt.Sprintf("got reply %q, want %q", got, want)
		}
		return ""
	}
}

// frameOf judges the frame of a hook: its head, and that every entry lies within it.
func frameOf(h abi.Hook) func(a Answer) string {
	return func(a Answer) string { return checkFrame(h, []byte(a.Buffer)) }
}

// elements is a list as the ABI has it.
func elements(list ...string) string {
	var b []byte
	for _, e := range list {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(e))), e...)
	}
	return string(b)
}

// outsideScenario asks for what is not the session's.
func outsideScenario() scenario {
	const eperm, elimit = int64(abi.EPERM), int64(abi.ELIMIT)
	const txt, other = int(abi.DNSTXT), 99
	get := elements("GET", "https://tck.test/", "")
	answer := "\x00\x00\x00\x00\x3c\x00\x00\x00" + elements("text")
	response := "\xc8\x00\x00\x00" + elements("hello")
	return scenario{name: "outside", calls: []call{
		at(mail, "kv_get", enoent, "k", Room(8)),
		at(mail, "kv_set", 0, "k", "value", 60_000),
		reads(rcpt, "kv_get", "value", "k", Room(8)),
		at(rcpt, "kv_get", 5, "k", Room(0)),
		at(rcpt, "kv_set", einval, "k", "", 0),
		at(rcpt, "kv_set", einval, "k", "v", -1),
		at(rcpt, "kv_set", einval, "", "v", 0),
		at(rcpt, "kv_set", elimit, strings.Repeat("k", abi.MaxKVKey+1), "v", 0),
		at(rcpt, "kv_cas", 0, "k", "", "new", 0),
		at(rcpt, "kv_cas", 1, "k", "value", "new", 0),
		at(rcpt, "kv_cas", 1, "l", "", "first", 0),
		reads(message, "kv_get", "new", "k", Room(8)),
		at(message, "kv_incr", einval, "k", 1, 0, Room(8)),
		reads(message, "kv_incr", "\x05\x00\x00\x00\x00\x00\x00\x00", "n", 5, 0, Room(8)),
		reads(message, "kv_incr", "\xfe\xff\xff\xff\xff\xff\xff\xff", "n", -7, 0, Room(8)),
		reads(message, "kv_get", "-2", "n", Room(8)),
		at(message, "kv_del", 0, "k"),
		at(message, "kv_del", 0, "k"),
		at(message, "kv_get", enoent, "k", Room(8)),

		reads(message, "dns", answer, txt, "tck.test", Room(40)),
		at(message, "dns", int64(len(answer)), txt, "tck.test", Room(0)),
		reads(message, "dns", answer, txt, "tck.test", Room(40)),
		at(message, "dns", enoent, txt, "nothing.test", Room(40)),
		at(message, "dns", einval, other, "tck.test", Room(40)),
		at(message, "dns", einval, txt, "", Room(40)),
		reads(message, "http", response, get, Room(40)),
		at(message, "http", einval, elements("GET", "https://tck.test/"), Room(40)),
		at(message, "http", einval, elements("GET", "https://tck.test/", "", "X", "1\r\nY: 2"), Room(40)),
		at(message, "http", einval, elements("GET", "https://tck.test/", "", "Host", "other.test"), Room(40)),
		at(message, "http", einval, get+"\x01", Room(40)),
		at(message, "http", eperm, elements("GET", "ftp://tck.test/", ""), Room(40)),
		at(message, "http", eperm, elements("CONNECT", "https://tck.test/", ""), Room(40)),
		at(message, "submit", 1, int(abi.OpDNS), "\x10\x00\x00\x00tck.test"),
		at(message, "submit", 2, int(abi.OpHTTP), get),
		at(message, "submit", einval, 3, "x"),
		at(message, "submit", einval, int(abi.OpDNS), "\x10"),
		reads(message, "wait", response, 2, 60_000, Room(40)),
		at(message, "wait", int64(len(answer)), 1, 60_000, Room(0)),
		reads(message, "wait", answer, 1, 0, Room(40)),
		at(message, "wait", enoent, 1, 0, Room(40)),
		at(message, "wait", enoent, 3, 0, Room(40)),
		at(message, "wait", einval, 1, -1, Room(40)),
		at(mail, "dsn", 0, elements("a@example.org", "subject", "text\n")),
		at(mail, "dsn", einval, elements("a@example.org", "sub\r\nject", "text\n")),
		at(mail, "dsn", einval, elements("a@example.org", "subject")),
		reads(mail, "secret", "hush", "tck", Room(8)),
		at(mail, "secret", eperm, "other", Room(8)),
	}, after: wantMessage(messageText)}
}

// waysOut chooses the way of a message.
func waysOut() scenario {
	const route, deliver = abi.HookRoute, abi.HookDeliver
	return scenario{name: "the way out", since: 2, calls: []call{
		at(route, "out_relay", 0, "relay.example:587"),
		at(route, "out_relay", einval, "a b"),
		at(route, "out_relay", einval, "a\r\n"),
		at(route, "out_relay", elimit, strings.Repeat("a", abi.MaxRelay+1)),
		at(route, "out_source", 0, "pool"),
		at(route, "out_source", elimit, strings.Repeat("a", abi.MaxSource+1)),
		at(route, "out_tls", 0, int(abi.TLSVerify)),
		at(route, "out_tls", eperm, int(abi.TLSOff)),
		at(route, "out_tls", eperm, int(abi.TLSOpportunistic)),
		at(route, "out_tls", einval, 5),
		at(route, "out_tls", einval, -1),
		at(deliver, "out_connect", einval, "mx.example.com"),
		at(deliver, "out_connect", einval, "192.0.2.1:99999"),
		at(deliver, "out_connect", einval, "[fe80::1%1]:25"),
		at(deliver, "out_connect", 0, "[2001:db8::1]:26"),
		at(deliver, StepVerdict, 0, int(abi.NewVerdict(abi.ActTempfail, 450, 4, 7, 1, false))),
	}, after: func(o outcome) string {
		want := policy.Way{Relay: "relay.example:587", Source: "pool", TLS: policy.Verified, To: netip.MustParseAddrPort("[2001:db8::1]:26")}
		if got := o.out.Outbound.Way; got != want {
			return fmt.Sprintf("the way is %+v, want %+v", got, want)
		}
		return wantReply(policy.StageDeliver, policy.Tempfail, "450 4.7.1 ")(o)
	}}
}

// outFacts reads what there is to know of an attempt.
func outFacts() scenario {
	const deliver, bounced = abi.HookDeliver, abi.HookBounced
	list := func(s string) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s }
	return scenario{name: "facts of the way out", since: 2, calls: []call{
		judged(abi.HookRoute, StepFrame, frameOf(abi.HookRoute), Room(MaxRoom)),
		judged(bounced, StepFrame, frameOf(bounced), Room(MaxRoom)),
		reads(deliver, "get", "example.com", int(abi.FieldTarget), 0, Room(30)),
		reads(deliver, "get", "mx2.example.com\t20\t\t\tno address", int(abi.FieldHops), 1, Room(60)),
		reads(deliver, "rcpt_get", "b@example.com", 0, Room(30)),
		at(deliver, "rcpt_count", 1),
		at(deliver, "rcpt_set", ephase, 0, "c@example.com"),
		reads(bounced, "get", list("1700000000000000000\tmx1.example.com\t192.0.2.25\t451 4.2.0 later"), int(abi.FieldFates), -1, Room(100)),
		at(deliver, "get", enoent, int(abi.FieldFates)+1000, 0, Room(10)),
		at(message, "get", enoent, int(abi.FieldTarget), 0, Room(10)),
	}}
}
