// The guest of the gateway's test of grants: at RCPT it does what the local part says, and
// answers with what came of it.
package main

import (
	"errors"
	"strconv"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
)

func main() {}

func init() {
	f := filter.New("outside")
	url := ""
	f.Configure(func(c filter.Config) error {
		url = c.String("url")
		return c.Err()
	})
	f.OnRcptTo(func(w filter.Reply, e *filter.RcptEvent) {
		text, err := do(e.Event, e.Rcpt().Local(), url)
		if errors.Is(err, abi.EPERM) {
			text = "EPERM"
		} else if err != nil {
			text = err.Error()
		}
		w.Tempfail(450, "4.7.1", text)
	})
	f.Serve()
}

func do(e filter.Event, what, url string) (string, error) {
	switch what {
	case "count":
		n, err := e.KV().Add("n", 1, 60_000)
		return strconv.FormatInt(n, 10), err
	case "keep":
		return "kept", e.KV().Set("k", []byte("a value"), 0)
	case "kept":
		v, ok, err := e.KV().Get("k")
		return string(v) + " " + strconv.FormatBool(ok), err
	case "swap":
		ok, err := e.KV().Swap("k", []byte("a value"), []byte("another"), 0)
		return strconv.FormatBool(ok), errors.Join(err, e.KV().Delete("none"))
	case "txt":
		texts, err := e.LookUpTXT("web.test")
		if err != nil {
			return "", err
		}
		return texts[0], nil
	case "ip":
		ips, err := e.LookUpIP("web.test")
		if err != nil {
			return "", err
		}
		return ips[0].String(), nil
	case "none":
		_, err := e.LookUpTXT("none.test")
		return "not found " + strconv.FormatBool(filter.NotFound(err)), nil
	case "fetch":
		r, err := e.Fetch(filter.Request{URL: url})
		return strconv.Itoa(r.Status) + " " + string(r.Body) + r.Get("x-test"), err
	case "both":
		a, b := e.StartFetch(filter.Request{URL: url}), e.StartLookUp(abi.DNSTXT, "web.test")
		r, err := a.Wait(4000)
		d, err2 := b.Wait(4000)
		if err = errors.Join(err, err2); err != nil {
			return "", err
		}
		return string(r.Body) + d.Records[0].Text, nil
	case "secret":
		return e.Secret("token")
	case "other":
		return e.Secret("other")
	case "notify":
		return "sent", e.Notify("carol@example.org", "A notice", "something happened\n")
	case "stray":
		err := e.Notify("carol@elsewhere.test", "A notice", "text")
		return "not found " + strconv.FormatBool(filter.NotFound(err)), nil
	}
	return "what?", nil
}
