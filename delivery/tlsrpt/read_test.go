package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

func zip(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func minimal(policies string) string {
	return `{"organization-name":"X","report-id":"1","date-range":{"start-datetime":"2016-04-01T00:00:00Z","end-datetime":"2016-04-01T23:59:59Z"},"policies":` + policies + `}`
}

func TestRead(t *testing.T) {
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct {
		what, in string
		want     string // of the first policy; or the beginning of an error
	}{
		{"one text for a list", minimal(`[{"policy":{"policy-type":"sts","policy-string":"version: STSv1","policy-domain":"x.example","mx-host":"*.x.example"},"summary":{"total-successful-session-count":1}}]`),
			"sts x.example [version: STSv1] [*.x.example] 1/0"},
		{"numbers as texts", minimal(`[{"policy":{"policy-type":"tlsa","policy-domain":"x.example"},"summary":{"total-successful-session-count":"3","total-failure-session-count":4}}]`),
			"tlsa x.example [] [] 3/4"},
		{"fields that nobody knows", minimal(`[{"policy":{"policy-type":"tlsa","policy-domain":"x","y":{"z":[1,2]}},"summary":{},"contact":null}]`), "tlsa x [] [] 0/0"},
		{"null for a list", minimal(`[{"policy":{"policy-type":"no-policy-found","policy-domain":"x","policy-string":null,"mx-host":null},"failure-details":null}]`), "no-policy-found x [] [] 0/0"},
		{"control characters", minimal(`[{"policy":{"policy-type":"sts","policy-domain":"a\u001b[31m\r\nb"}}]`), "sts a [31m  b [] [] 0/0"},
		{"numbers that add up to too many", minimal(`[{"policy":{"policy-type":"sts","policy-domain":"x"},"summary":{"total-successful-session-count":9223372036854775807}},{"policy":{},"summary":{"total-successful-session-count":9223372036854775807}}]`),
			"sts x [] [] 9223372036854775807/0"},

		{"nothing", "", "error"},
		{"no JSON", "hello", "error"},
		{"a list", "[]", "error"},
		{"no policies", minimal(`[]`), "error"},
		{"nobody's", `{"policies":[{}]}`, "error"},
		{"a negative number", minimal(`[{"summary":{"total-successful-session-count":-1}}]`), "error"},
		{"a fraction", minimal(`[{"summary":{"total-successful-session-count":1.5}}]`), "error"},
		{"too deep", minimal(`[{"x":` + nest(20) + `}]`), "error"},
		{"far too deep", nest(1 << 20), "error"},
		{"too many policies", minimal(`[` + strings.Repeat(`{},`, 5000) + `{}]`), "error"},
		{"too many failures", minimal(`[{"failure-details":[` + strings.Repeat(`{},`, 5000) + `{}]}]`), "error"},
		{"too many texts", minimal(`[{"policy":{"policy-string":[` + strings.Repeat(`"",`, 5000) + `""]}}]`), "error"},
		{"the year 10000, in UTC", strings.Replace(minimal(`[{}]`), "2016-04-01T23:59:59Z", "9999-12-31T23:59:59-02:00", 1), "error"},
		{"cut off", string(zip(t, []byte(minimal(`[{}]`)))[:40]), "error"},
		{"a bomb", string(zip(t, make([]byte, MaxReport+1))), "error"},
		{"a bomb in many members", strings.Repeat(string(zip(t, make([]byte, 1<<20))), 9), "error"},
		{"members of nothing", strings.Repeat(string(zip(t, nil)), 1000), "error"},
	} {
		rep, err := Read(strings.NewReader(c.in))
		got := "error"
		if err == nil {
			p := rep.Policies[0].Policy
			ok, failed := rep.Sessions()
			got = fmt.Sprintf("%s %s %v %v %d/%d", p.Type, p.Domain, p.Strings, p.MXHosts, ok, failed)
		} else if !errors.Is(err, ErrNotReport) {
			t.Errorf("%s: %v is no ErrNotReport", c.what, err)
		}
		if got != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.what, got, err, c.want)
		}
	}
}

// TestReadMemory: what is small when it comes is not large when it was read.
func TestReadMemory(t *testing.T) {
	many := make([]string, maxOutcomes)
	for i := range many {
		many[i] = `{"failure-details":[` + strings.TrimSuffix(strings.Repeat(`{},`, maxFailures), ",") + `]}`
	}
	in := zip(t, []byte(minimal("["+strings.Join(many, ",")+"]")))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	rep, err := Read(bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d octets of input took %d of memory", len(in), n)
	}
	n := 0
	for _, p := range rep.Policies {
		n += len(p.Failures)
	}
	if n != maxKept {
		t.Errorf("%d failures were kept", n)
	}
}

// FuzzReadMessage: whatever comes in ends, and what comes out can be stored and read again.
func FuzzReadMessage(f *testing.F) {
	example, err := os.ReadFile("testdata/report.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("Content-Type: application/tlsrpt+json\r\n\r\n" + string(example)))
	f.Add([]byte("Content-Type: application/tlsrpt+gzip\r\n\r\n" + string(zip(f, example))))
	f.Add([]byte("Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: application/gzip; name=x.json.gz\r\n\r\n" + string(zip(f, example)) + "\r\n--b--\r\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		rep, err := ReadMessage(content)
		if err != nil {
			if !errors.Is(err, ErrNotReport) {
				t.Fatal(err)
			}
			return
		}
		data, err := json.Marshal(rep)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Read(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if data2, _ := json.Marshal(again); !bytes.Equal(data, data2) {
			t.Fatalf("%s became %s", data, data2)
		}
	})
}
