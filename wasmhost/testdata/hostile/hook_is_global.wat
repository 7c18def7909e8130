;; mg1_hook is a global. It must not load.
(module
  (global (export "mg1_hook") i32 (i32.const 0))
  (memory (export "memory") 1)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))
