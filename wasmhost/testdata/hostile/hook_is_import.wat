;; mg1_hook is one of the host's own functions. It must not load.
(module
  (import "mg1" "log_enabled" (func $l (param i32) (result i32))) (export "mg1_hook" (func $l))
  (memory (export "memory") 1)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))
